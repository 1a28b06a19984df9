"""Which images are held out: by what they are, never by what or where they are called.

A hash of the image's own digest decides, so the same images are held out on every machine, from a folder, a table, a
JSON file or the hub, streamed or not, in any order of rows. What belongs together (rows of one image, and of one group
where groups are asked for) stays together.

No torch.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import UsageError

DEFAULT_HELD_OUT = 0.1
"""Share of the images that is held out where the data bring no validation part along."""
TRAIN, VALIDATION, TEST = "train", "validation", "test"
PART_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
"""What data call their parts, and the part it is. ``restval`` is Karpathy's for more training images."""


def part_called(name: str) -> str | None:
    """The part that a folder, a split or a value of a column names; None for none.

    >>> part_called("Val"), part_called("cats")
    ('validation', None)
    """
    return PART_NAMES.get(name.strip().lower())


def part_in_file_name(name: str) -> str | None:
    """The part that a table's file is for, where its name says one.

    >>> part_in_file_name("train-00000-of-00002.parquet"), part_in_file_name("captions_val2017.csv")
    ('train', 'validation')
    """
    words = re.split(r"[^a-z0-9]+", PurePath(name).name.lower().rpartition(".")[0])
    parts = {part for word in words if (part := PART_NAMES.get(word.rstrip("0123456789"))) is not None}
    return parts.pop() if len(parts) == 1 else None


def require_share(held_out: float) -> float:
    """Return it when it is a share.

    Raises:
        UsageError: It is not above 0 and below 1.
    """
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 < held_out < 1:
        raise UsageError(f"held_out (--held-out) must be above 0 and below 1, got {held_out!r}.")
    return float(held_out)


def held_out_rank(digest: str) -> int:
    """A number below 2**64, evenly spread, that an image or group keeps for ever."""
    return int.from_bytes(hashlib.sha256(f"held out {digest}".encode()).digest()[:8], "big")


def is_held_out(digest: str, share: float) -> bool:
    """Whether the image of this content (or the group of this digest) is among the share that is held out."""
    return held_out_rank(digest) < share * 2**64


def group_digest(value: str) -> str:
    """What stands for a group where it is decided which are held out."""
    return hashlib.sha256(f"group {value}".encode()).hexdigest()


@dataclass
class _Union:
    """Things that belong together."""

    parents: dict[Hashable, Hashable] = field(default_factory=dict)

    def root(self, thing: Hashable) -> Hashable:
        while (parent := self.parents.setdefault(thing, thing)) != thing:
            self.parents[thing] = thing = self.parents[parent]
        return thing

    def join(self, one: Hashable, other: Hashable) -> None:
        self.parents[self.root(one)] = self.root(other)


def held_out_images(digests: Sequence[str], share: float, groups: Sequence[str | None] = ()) -> set[str]:
    """The images that are held out: at least one, and of two or more at least one is not.

    Args:
        digests: Of the image of every row.
        share: About this share of the images, or of the groups.
        groups: Of every row. Rows of one group are on one side; an image that two groups have joins them.
    """
    keys = _keys(digests, groups)
    ranked = sorted(set(keys.values()), key=lambda key: (held_out_rank(key), key))
    chosen = {key for key in ranked if is_held_out(key, share)} or set(ranked[:1])
    if len(chosen) == len(ranked) > 1:
        chosen.remove(ranked[-1])
    return {digest for digest, key in keys.items() if key in chosen}


def _keys(digests: Sequence[str], groups: Sequence[str | None]) -> Mapping[str, str]:
    """What decides about each image: itself, or the first in order of the groups that it belongs to."""
    if not any(group is not None for group in groups):
        return {digest: digest for digest in digests}
    union = _Union()
    for digest, group in zip(digests, groups, strict=True):
        if group is not None:
            union.join(("image", digest), ("group", group_digest(group)))
    least: dict[Hashable, str] = {}
    for digest in {group_digest(group) for group in groups if group is not None}:
        root = union.root(("group", digest))
        least[root] = min(digest, least.get(root, digest))
    return {digest: least.get(union.root(("image", digest)), digest) for digest in digests}


def without_images_of(examples: Sequence[Example], others: Iterable[Example]) -> list[Example]:
    """The examples whose image is, by content, none of the others'."""
    known = {other.image_digest() for other in others}
    return [example for example in examples if example.image_digest() not in known] if known else list(examples)
