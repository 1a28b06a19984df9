"""Which of the images that are asked about adapters were trained on: measured with those, memory looks like skill."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.seen import SeenImages
from lorax_vlm.data.examples import Example
from lorax_vlm.data.scene_examples import is_drawn
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.types import SeenShare

DRAWN = "drawn"
"""Fact of a manifest's training: it was on drawn scenes, which are known by their numbers and not by bytes of files."""


@dataclass(frozen=True)
class Asked:
    """What is left to ask about, and what each adapter had seen before."""

    examples: Sequence[Example]
    shares: tuple[SeenShare, ...]

    def of(self, adapter: str | None) -> SeenShare | None:
        """An adapter's share; None for the base."""
        return next((share for share in self.shares if share.adapter == adapter), None)


def comparable(seen: SeenImages | None, manifest: Manifest, examples: Sequence[Example]) -> SeenImages | None:
    """What an adapter saw, where that can be compared with the images that are asked about; None where not.

    Args:
        seen: What it says.
        manifest: Of the adapter.
        examples: What is asked about.
    """
    if not manifest.trained:
        return SeenImages()
    if manifest.training.get(DRAWN) and not all(is_drawn(example) for example in examples):
        return None  # the same scene in a file is another content
    return seen


def leave_out_seen(
    examples: Sequence[Example], seen: Mapping[str, SeenImages | None], *, include: bool = False
) -> Asked:
    """The examples whose images none of several adapters was trained on, so that all are asked the same.

    Args:
        examples: Questions, or references.
        seen: What each adapter was trained on, by its name; None where that is not known.
        include: Keep them, and only count.

    Raises:
        UsageError: Nothing would be left.
    """
    keys = [_digest(example) for example in examples]
    distinct = set(keys)
    by_adapter = {
        name: {key for key in distinct if isinstance(key, str) and images.contains(key)}
        for name, images in seen.items()
        if images is not None
    }
    known: set[Hashable] = set().union(*by_adapter.values())
    kept = [example for example, key in zip(examples, keys, strict=True) if include or key not in known]
    shares = tuple(
        SeenShare(name, len(distinct), len(by_adapter[name]) if name in by_adapter else None, left_out=not include)
        for name in seen
    )
    if examples and not kept:
        trained = ", ".join(name for name, images in by_adapter.items() if images)
        raise UsageError(
            f"All {len(distinct)} images were trained on by {trained}. Measure with others, or with these all the "
            "same (include_seen=True)."
        )
    return Asked(kept, shares)


def _digest(example: Example) -> Hashable:
    """The image's SHA-256; what cannot be read is like no other, and asking about it will say what is wrong."""
    try:
        return example.image_digest()
    except LoraxError:
        return "unreadable", example.name
