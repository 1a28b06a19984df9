"""The miniature world: drawn scenes of coloured shapes whose every caption, question and answer is known exactly.

A scene is a pure function of its seed. Seeds of the train, validation and test splits come from disjoint ranges, so
no split can contain a scene of another.

>>> scene = make_scene(3)
>>> scene.caption("plain") == scene.caption("plain")
True

No torch.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from lorax_vlm.data.world.captions import STYLES, CaptionScore, write_caption
from lorax_vlm.data.world.captions import score_caption as _score_caption
from lorax_vlm.data.world.drawing import draw_scene
from lorax_vlm.data.world.questions import QUESTION_TYPES, Question, write_questions
from lorax_vlm.data.world.words import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, SceneObject
from lorax_vlm.errors import UsageError
from lorax_vlm.types import require_whole

__all__ = [
    "QUESTION_TYPES",
    "SPLITS",
    "STYLES",
    "Scene",
    "SceneObject",
    "iterate_scenes",
    "make_scene",
    "score_caption",
    "split_seeds",
]

SPLITS = {
    "train": range(0, 1_000_000_000),
    "validation": range(1_000_000_000, 2_000_000_000),
    "test": range(2_000_000_000, 3_000_000_000),
}


@dataclass(frozen=True)
class Scene:
    """One scene: its objects in reading order, its background, and everything derived from them."""

    seed: int
    objects: tuple[SceneObject, ...]
    background: str

    @cached_property
    def image(self) -> Image.Image:
        """The drawing, RGB."""
        return draw_scene(self.objects, self.background, self.seed)

    def caption(self, style: str) -> str:
        """The reference caption in one of ``STYLES``.

        Raises:
            UsageError: The style is unknown.
        """
        return write_caption(self.objects, self.background, style)

    def questions(self) -> list[Question]:
        """Questions with one right answer each, as ``(type, question, answer)``; the types are ``QUESTION_TYPES``."""
        return write_questions(self.objects, self.background, random.Random(f"questions-{self.seed}"))


def make_scene(seed: int) -> Scene:
    """Make the scene of a seed: one to five objects, unique in colour and shape together, each in its own place.

    Raises:
        UsageError: ``seed`` is negative.
    """
    if seed < 0:
        raise UsageError(f"A scene seed is a non-negative integer, got {seed}.")
    rng = random.Random(f"scene-{seed}")
    places = rng.sample(list(PLACES), k=rng.randint(1, 5))
    names = _draw_names(rng, len(places))
    objects = [
        SceneObject(color, shape, rng.choice(SIZES), place)
        for (color, shape), place in zip(names, sorted(places, key=list(PLACES).index), strict=True)
    ]
    return Scene(seed, tuple(objects), rng.choice(list(BACKGROUNDS)))


def _draw_names(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Distinct (colour, shape) pairs; one scene in four is all of one shape, one in six all of one colour.

    Without that bias, counts above two and matching scenes would hardly occur.
    """
    theme = rng.random()
    if theme < 1 / 4:
        shape = rng.choice(SHAPES)
        return [(color, shape) for color in rng.sample(list(COLORS), k=count)]
    if theme < 1 / 4 + 1 / 6 and count <= len(SHAPES):
        color = rng.choice(list(COLORS))
        return [(color, shape) for shape in rng.sample(SHAPES, k=count)]
    return rng.sample([(color, shape) for color in COLORS for shape in SHAPES], k=count)


def score_caption(scene: Scene, style: str, text: str) -> CaptionScore:
    """Judge a caption of a scene as ``(in_style, true)``: its form, and its content against the truth.

    Raises:
        UsageError: The style is unknown.
    """
    return _score_caption(scene.objects, scene.background, style, text)


def split_seeds(split: str, count: int, start: int = 0) -> range:
    """Seeds number ``start`` to ``start + count`` of a split.

    Raises:
        UsageError: The split is unknown, or has fewer seeds than asked for.
    """
    if split not in SPLITS:
        raise UsageError(f"Unknown split {split!r}. Known splits: {', '.join(SPLITS)}.")
    require_whole("count", count, 0)
    require_whole("start", start, 0)
    seeds = SPLITS[split]
    if start + count > len(seeds):
        raise UsageError(f"Seeds {start} to {start + count} are not within the {len(seeds)} seeds of split {split!r}.")
    return seeds[start : start + count]


def iterate_scenes(split: str, count: int, start: int = 0) -> Iterator[Scene]:
    """Make the scenes of ``split_seeds`` one by one."""
    return map(make_scene, split_seeds(split, count, start))
