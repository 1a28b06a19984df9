"""Training examples, whatever they come from: an image, an optional prompt, and the text to learn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.scenes import iterate_scenes, make_scene


@dataclass(frozen=True)
class Example:
    """One image with the text to learn from it."""

    image: ImageSource | Callable[[], Image.Image]
    """Anything ``load_image`` reads, or a function that draws it."""
    target: str
    name: str
    """How errors and listings call it, such as ``metadata.jsonl:12``."""
    prompt: str = ""
    answers: tuple[str, ...] = ()
    """What all annotators said, where that is known; ``target`` is the most frequent of them."""
    kind: str = ""
    """Type of the question, such as ``counting``; results are given by it."""

    def open_image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            ImageError: It cannot be read.
        """
        return self.image() if callable(self.image) else load_image(self.image)


@dataclass(frozen=True)
class DataSplits:
    """Training and validation examples with a name for both."""

    train: Sequence[Example]
    validation: Sequence[Example]
    source: str
    skipped: Sequence[str] = ()
    """Malformed rows that were left out on request, as ``file:line: reason``."""

    def with_prompt(self, prompt: str) -> "DataSplits":
        """The same examples, with this prompt where they have none of their own."""
        if not prompt:
            return self
        train, validation = (
            [example if example.prompt else replace(example, prompt=prompt) for example in part]
            for part in (self.train, self.validation)
        )
        return replace(self, train=train, validation=validation)

    def summary(self) -> str:
        """One line for people."""
        skipped = f", {len(self.skipped)} malformed rows left out" if self.skipped else ""
        return f"{self.source}: {len(self.train)} training and {len(self.validation)} validation examples{skipped}"


def draw_scene_image(seed: int) -> Image.Image:
    """The image of a scene, not kept in memory."""
    return make_scene(seed).image


def scene_captions(style: str, split: str, count: int, start: int = 0) -> list[Example]:
    """Captions of one style over scenes of a split.

    Raises:
        ValueError: The style or the split is unknown.
    """
    return [
        Example(partial(draw_scene_image, scene.seed), scene.caption(style), f"scene {scene.seed}")
        for scene in iterate_scenes(split, count, start)
    ]


def scene_caption_splits(style: str, train_count: int, validation_count: int = 96) -> DataSplits:
    """Training and validation scenes for a caption style."""
    return DataSplits(
        scene_captions(style, "train", train_count),
        scene_captions(style, "validation", validation_count),
        f"miniature scenes, style {style!r}",
    )
