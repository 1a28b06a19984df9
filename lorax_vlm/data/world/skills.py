"""Which drawn scenes teach a skill, and which are left to measure it: the only door from skills to the scene world.

An instruction takes the place of a question, so every base puts its own prompt around it.

No torch.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.data.world.captions import require_style
from lorax_vlm.data.world.examples import (
    CAPTION_SCENES,
    GENERAL,
    QUESTION_SCENES,
    draw_scene_image,
    require_task,
    scene_captions,
    scene_questions,
)
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.errors import UsageError
from lorax_vlm.skills import EXCHANGE_TASKS, Skill

INSTRUCTIONS: dict[str, Callable[[Scene], str]] = {
    "Describe the image in detail.": lambda scene: scene.caption("detailed"),
    "Describe the image in a few words.": lambda scene: scene.caption("concise"),
    "Name the shapes only.": lambda scene: ", ".join(o.shape for o in scene.objects),
    "Name the colors only.": lambda scene: ", ".join(o.color for o in scene.objects),
}
"""What is asked for, and the answer to it."""
REASONING = "reasoning"
MIXED = "vqa"
"""The kind of question of the exchange's task of that name: all but reasoning."""


def require_exchange_task(task: str, *, writes: bool = True) -> Skill:
    """The skill that a task of the exchange means, when it is one that a model can do.

    Args:
        task: Its name.
        writes: Whether the model writes text of its own.

    Raises:
        UsageError: It is none, or needs words that the model does not have.
    """
    skill = EXCHANGE_TASKS.get(task) if isinstance(task, str) else None
    if skill is None:
        raise UsageError(f"Unknown task {task!r}. Known: {', '.join(EXCHANGE_TASKS)}.")
    if skill.writes and not writes:
        possible = ", ".join(other for other, its in EXCHANGE_TASKS.items() if not its.writes)
        raise UsageError(f"A model that chooses among fixed answers cannot do {task!r}. It can do: {possible}.")
    return skill


def require_scenes(skill: Skill) -> Skill:
    """Return a skill that drawn scenes teach.

    Raises:
        UsageError: They teach none of this name.
    """
    if skill.mode == "caption":
        require_style(skill.name)
    elif skill.mode == "answer" and skill.name != MIXED:
        require_task(skill.name)
    return skill


def skill_examples(
    skill: Skill, split: str, count: int, *, start: int = 0, all_questions: bool = False
) -> list[Example]:
    """Examples of a skill over scenes of a split.

    Args:
        skill: What they ask for.
        split: ``train``, ``validation`` or ``test``.
        count: Number of scenes.
        start: Number of scenes to pass over.
        all_questions: Every question about a scene that belongs to the skill, instead of one.

    Raises:
        UsageError: Scenes teach no such skill, or the split is unknown.
    """
    require_scenes(skill)
    if skill.mode == "caption":
        return scene_captions(skill.name, split, count, start)
    if skill.mode == "instruct":
        return [_instructed(scene) for scene in iterate_scenes(split, count, start)]
    if skill.name != MIXED:
        return scene_questions(skill.name, split, count, per_scene=None if all_questions else 1, start=start)
    questions = scene_questions("general", split, count, per_scene=None, start=start)
    return _chosen([example for example in questions if example.kind != REASONING], skill.name, all_questions)


def skill_splits(skill: Skill, train: int | None = None, validation: int | None = None) -> DataSplits:
    """Training scenes of a skill, with all their questions, and validation scenes, with one each.

    Args:
        skill: What they teach.
        train: Number of scenes to train on. None: the usual one of the mode.
        validation: Number of scenes to validate with. None: the usual one of the mode.

    Raises:
        UsageError: Scenes teach no such skill.
    """
    count, held_out = (CAPTION_SCENES, 96) if skill.mode == "caption" else (QUESTION_SCENES, 150)
    named = {"caption": f"style {skill.name!r}", "answer": f"task {skill.name!r}"}.get(skill.mode, str(skill))
    return DataSplits(
        skill_examples(skill, "train", count if train is None else train, all_questions=True),
        skill_examples(skill, "validation", held_out if validation is None else validation),
        f"miniature scenes, {named}",
    )


def kinds_taught(skill: Skill | None) -> tuple[str, ...]:
    """The types of questions that an adapter for a skill was trained for, as far as scenes have them."""
    if skill is None or skill.mode != "answer":
        return ()
    if skill.name == MIXED:
        return tuple(kind for kind in QUESTION_TYPES if kind != REASONING)
    return QUESTION_TYPES if skill.name == GENERAL else (skill.name,)


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
