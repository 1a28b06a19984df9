"""Drawn scenes as training examples: captions of a style, questions of a type. No torch."""

import random
from functools import partial

from PIL import Image

from lorax_vlm.data.examples import Example, answered
from lorax_vlm.data.scenes import iterate_scenes, make_scene
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.errors import UsageError
from lorax_vlm.types import require_text

CAPTION_SCENES, QUESTION_SCENES = 3200, 6400
"""Training scenes for a caption style, and for a skill of answering questions."""
GENERAL = "general"
"""The task that takes questions of every type."""


def draw_scene_image(seed: int) -> Image.Image:
    """The image of a scene, not kept in memory."""
    return make_scene(seed).image


def is_drawn(example: Example) -> bool:
    """Whether an example's image is a scene that is drawn when it is needed."""
    return isinstance(example.image, partial) and example.image.func is draw_scene_image


def drawn_example(seed: int, target: str = "") -> Example:
    """A scene with a text about it."""
    return Example(partial(draw_scene_image, seed), target, f"scene {seed}")


def scene_captions(style: str, split: str, count: int, start: int = 0) -> list[Example]:
    """Captions of one style over scenes of a split.

    Raises:
        UsageError: The style or the split is unknown.
    """
    return [drawn_example(scene.seed, scene.caption(style)) for scene in iterate_scenes(split, count, start)]


def require_task(task: str) -> str:
    """Return ``task`` when the scene world has questions for it.

    Raises:
        UsageError: It is none of ``QUESTION_TYPES`` and not ``general``.
    """
    require_text("task", task)
    if task not in (*QUESTION_TYPES, GENERAL):
        raise UsageError(f"Unknown task {task!r}. Known: {GENERAL}, {', '.join(QUESTION_TYPES)}.")
    return task


def scene_questions(task: str, split: str, count: int, *, per_scene: int | None = 1, start: int = 0) -> list[Example]:
    """Questions of one type over scenes of a split; of every type for ``general``.

    Args:
        task: One of ``QUESTION_TYPES``, or ``general``.
        split: ``train``, ``validation`` or ``test``.
        count: Number of scenes.
        per_scene: Questions drawn for each scene; None takes all. A scene without such a question has none.
        start: Number of scenes to pass over.

    Raises:
        UsageError: The task or the split is unknown.
    """
    require_task(task)
    examples = []
    for scene in iterate_scenes(split, count, start):
        asked = [row for row in scene.questions() if task in (row[0], GENERAL)]
        if per_scene is not None and len(asked) > per_scene:
            asked = random.Random(f"asked-{task}-{scene.seed}").sample(asked, per_scene)
        image = partial(draw_scene_image, scene.seed)
        examples += [answered(image, q, [a], f"scene {scene.seed}", kind) for kind, q, a in asked]
    return examples
