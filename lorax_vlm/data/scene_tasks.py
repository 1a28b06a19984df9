"""What each task of the exchange means in the scene world: which examples teach it, and which are left to measure it.

An instruction takes the place of a question, so every base puts its own prompt around it.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.scene_examples import (
    CAPTION_SCENES,
    QUESTION_SCENES,
    draw_scene_image,
    scene_captions,
    scene_questions,
)
from lorax_vlm.data.scene_questions import QUESTION_TYPES
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.errors import UsageError

CAPTION_STYLE = "detailed"
"""The style that ``captioning`` teaches."""
REASONING = "reasoning"
INSTRUCTIONS: dict[str, Callable[[Scene], str]] = {
    "Describe the image in detail.": lambda scene: scene.caption("detailed"),
    "Describe the image in a few words.": lambda scene: scene.caption("concise"),
    "Name the shapes only.": lambda scene: ", ".join(o.shape for o in scene.objects),
    "Name the colors only.": lambda scene: ", ".join(o.color for o in scene.objects),
}
"""What is asked for, and the answer to it."""
TASKS = ("captioning", "vqa", "instruction_following", "complex_reasoning", "general")
WRITING_TASKS = ("captioning", "instruction_following")
"""Those a model needs words of its own for; ViLT has none."""


def require_exchange_task(task: str, *, writes: bool = True) -> str:
    """Return ``task`` when it is one of ``TASKS`` that a model can do.

    Args:
        task: Its name.
        writes: Whether the model writes text of its own.

    Raises:
        UsageError: It is none, or needs words that the model does not have.
    """
    if task not in TASKS:
        raise UsageError(f"Unknown task {task!r}. Known: {', '.join(TASKS)}.")
    if task in WRITING_TASKS and not writes:
        possible = ", ".join(other for other in TASKS if other not in WRITING_TASKS)
        raise UsageError(f"A model that chooses among fixed answers cannot do {task!r}. It can do: {possible}.")
    return task


def task_examples(task: str, split: str, count: int, *, start: int = 0, all_questions: bool = False) -> list[Example]:
    """Examples of a task over scenes of a split.

    Args:
        task: One of ``TASKS``.
        split: ``train``, ``validation`` or ``test``.
        count: Number of scenes.
        start: Number of scenes to pass over.
        all_questions: Every question about a scene that belongs to the task, instead of one.

    Raises:
        UsageError: The task or the split is unknown.
    """
    require_exchange_task(task)
    if task == "captioning":
        return scene_captions(CAPTION_STYLE, split, count, start)
    if task == "instruction_following":
        return [_instructed(scene) for scene in iterate_scenes(split, count, start)]
    if task == "complex_reasoning":
        return scene_questions(REASONING, split, count, per_scene=None if all_questions else 1, start=start)
    questions = scene_questions("general", split, count, per_scene=None, start=start)
    kinds = [kind for kind in QUESTION_TYPES if task == "general" or kind != REASONING]
    return _chosen([example for example in questions if example.kind in kinds], task, all_questions)


def task_splits(task: str) -> DataSplits:
    """Training and validation scenes of a task."""
    count = CAPTION_SCENES if task == "captioning" else QUESTION_SCENES
    return DataSplits(
        task_examples(task, "train", count, all_questions=True),
        task_examples(task, "validation", 150),
        f"miniature scenes, task {task!r}",
    )


def without_targets(examples: list[Example]) -> list[Example]:
    """The same images and questions, with nothing said about them."""
    return [replace(example, target="", answers=(), name=f"{example.name} (unlabelled)") for example in examples]


def _instructed(scene: Scene) -> Example:
    rng = random.Random(f"instructed-{scene.seed}")
    instruction = rng.choice(list(INSTRUCTIONS))
    image = partial(draw_scene_image, scene.seed)
    return answered(image, instruction, [INSTRUCTIONS[instruction](scene)], f"scene {scene.seed}", "instruction")


def _chosen(examples: list[Example], task: str, everything: bool) -> list[Example]:
    """One question per scene, of types that are equally frequent; or all of them."""
    if everything:
        return examples
    by_scene: dict[str, dict[str, list[Example]]] = {}
    for example in examples:
        by_scene.setdefault(example.name, {}).setdefault(example.kind, []).append(example)
    chosen = []
    for name, by_kind in by_scene.items():
        rng = random.Random(f"chosen-{task}-{name}")
        chosen.append(rng.choice(by_kind[rng.choice(sorted(by_kind))]))
    return chosen
