"""Which of the images that are asked about adapters were trained on: measured with those, memory looks like skill."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.seen import SeenImages, join_seen
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.noted import NotedStream
from lorax_vlm.data.world.examples import is_drawn
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.results import SeenShare

KNOWN_BY = "images_known_by"
"""Fact of a manifest's training: by what its images are known, a list of ``Identity``; without it any."""
PARTLY = "seen_partly"
"""Fact of a manifest's training: it is made of several, and not all of them say what they were trained on."""


class Identity(StrEnum):
    """By what an image is known. One picture has another identity of each kind, so only equal kinds are compared."""

    FILE = "file"
    """The bytes of its file."""
    PIXELS = "pixels"
    """What a picture in memory shows, as a PIL image, an array, or what a function returns."""
    DRAWING = "drawing"
    """The number of a scene of the miniature world."""


def identities(examples: Iterable[Example]) -> frozenset[Identity]:
    """By what the images of examples are known."""
    return frozenset(map(_identity, examples))


def identities_of(manifest: Manifest) -> frozenset[Identity]:
    """By what the images are known that an adapter was trained on."""
    said = manifest.training.get(KNOWN_BY)
    known = {kind for kind in Identity if isinstance(said, list | tuple) and kind in said}
    return frozenset(known or Identity)


@dataclass(frozen=True)
class Heritage:
    """What something that learnt has seen, and so what is made of it."""

    images: SeenImages | None
    """None: it does not say."""
    known_by: frozenset[Identity]
    partly: bool = False
    """Whether it has seen others, too, of which nothing is known."""

    @classmethod
    def of(cls, manifest: Manifest, images: SeenImages | None) -> "Heritage":
        """An adapter's own."""
        return cls(images, identities_of(manifest), bool(manifest.training.get(PARTLY)))

    @classmethod
    def of_data(cls, splits: DataSplits, known_by: Iterable[Identity]) -> "Heritage":
        """That of training on data; of data in memory all, though a short run does not come to each."""
        if isinstance(splits.train, NotedStream):  # which may not have noted them
            images = SeenImages.of(splits.train.images) if splits.train.images is not None else None
        else:
            images = SeenImages.of(example.image_digest() for example in splits.train)
        return cls(images, frozenset(known_by))

    @classmethod
    def joined(cls, several: Sequence["Heritage"]) -> "Heritage":
        """That of what is made of several."""
        images, complete = join_seen(one.images for one in several)
        known_by = frozenset[Identity]().union(*(one.known_by for one in several))
        return cls(images, known_by, not complete or any(one.partly for one in several))

    def facts(self) -> dict[str, Any]:
        """For a manifest's training; the images lie in a file of their own."""
        return {KNOWN_BY: sorted(self.known_by), **({PARTLY: True} if self.partly else {})}


def _identity(example: Example) -> Identity:
    if is_drawn(example):
        return Identity.DRAWING
    in_memory = callable(example.image) or isinstance(example.image, Image.Image | np.ndarray)
    return Identity.PIXELS if in_memory else Identity.FILE


@dataclass(frozen=True)
class Known:
    """What is known of the images that an adapter was trained on."""

    images: SeenImages
    complete: bool
    """Whether it was trained on no others that could be among those asked about."""


@dataclass(frozen=True)
class Asked:
    """What is left to ask about, and what each adapter had seen before."""

    examples: Sequence[Example]
    shares: tuple[SeenShare, ...]

    def of(self, adapter: str | None) -> SeenShare | None:
        """An adapter's share; None for the base."""
        return next((share for share in self.shares if share.adapter == adapter), None)


def comparable(seen: SeenImages | None, manifest: Manifest, examples: Sequence[Example]) -> Known:
    """What is known of the images that an adapter saw, as far as they can be compared with those that are asked about.

    Args:
        seen: What it says.
        manifest: Of the adapter.
        examples: What is asked about.
    """
    if seen is None:  # what was not trained has seen nothing; but what says that it has, has
        return Known(SeenImages(), complete=not manifest.trained)
    comparable_kinds = len(identities_of(manifest) | identities(examples)) <= 1
    return Known(seen, complete=comparable_kinds and not manifest.training.get(PARTLY))


_MEASURE_OTHERS = "Measure with others, or with these all the same (include_seen=True)."


def leave_out_seen(
    examples: Sequence[Example], seen: Mapping[str, Known], *, include: bool = False, way_out: str = _MEASURE_OTHERS
) -> Asked:
    """The examples whose images none of several adapters was trained on, so that all are asked the same.

    Args:
        examples: Questions, or references.
        seen: What each adapter was trained on, as far as that is known, by its name.
        include: Keep them, and only count.
        way_out: What to do where nothing would be left, for the error.

    Raises:
        UsageError: Nothing would be left.
    """
    keys = [_digest(example) for example in examples]
    distinct = set(keys)
    by_adapter = {
        name: {key for key in distinct if isinstance(key, str) and known.images.contains(key)}
        for name, known in seen.items()
    }
    met: set[Hashable] = set().union(*by_adapter.values())
    kept = [example for example, key in zip(examples, keys, strict=True) if include or key not in met]
    shares = tuple(
        SeenShare(
            name,
            len(distinct),
            len(by_adapter[name]) if known.complete or by_adapter[name] else None,
            left_out=not include,
            complete=known.complete,
        )
        for name, known in seen.items()
    )
    if examples and not kept:
        trained = ", ".join(name for name, images in by_adapter.items() if images)
        raise UsageError(f"All {len(distinct)} images were trained on by {trained}. {way_out}")
    return Asked(kept, shares)


def _digest(example: Example) -> Hashable:
    """The image's SHA-256; what cannot be read is like no other, and asking about it will say what is wrong."""
    try:
        return example.image_digest()
    except LoraxError:
        return "unreadable", example.name
