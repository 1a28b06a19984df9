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
PARTLY = "seen_partly"
"""Fact of a manifest's training: it is made of several, and not all of them say what they were trained on."""


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
    # The same scene in a file is another content.
    hidden = manifest.training.get(DRAWN) and not all(is_drawn(example) for example in examples)
    return Known(seen, complete=not hidden and not manifest.training.get(PARTLY))


def leave_out_seen(examples: Sequence[Example], seen: Mapping[str, Known], *, include: bool = False) -> Asked:
    """The examples whose images none of several adapters was trained on, so that all are asked the same.

    Args:
        examples: Questions, or references.
        seen: What each adapter was trained on, as far as that is known, by its name.
        include: Keep them, and only count.

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
