"""Of images that are there several times the best one, and what was said of the others kept. No torch."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from lorax_vlm.curation.similar import Looks, near_duplicates
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.errors import UsageError
from lorax_vlm.types import counted

_THREADS = 2


@dataclass(frozen=True)
class Deduped:
    """A data set without images that are there twice."""

    splits: DataSplits
    groups: tuple[tuple[str, ...], ...]
    """Names of rows, one for each image of a group; the first is that of the image that stays."""
    copies: tuple[tuple[str, ...], ...]
    """Names of rows whose images are equal files under different names; the first is that of the file that stays."""
    repeated: int
    """Rows that said of an image what another row says of it."""

    def lines(self) -> list[str]:
        """For people."""
        lines = (
            [f"{counted(len(self.groups), 'image')} in several versions, of which the largest stays:"]
            if self.groups
            else []
        )
        lines += [f"  {kept} instead of {', '.join(others)}" for kept, *others in self.groups]
        if self.copies:
            lines.append(f"{counted(len(self.copies), 'image')} under several names, of which one stays:")
        lines += [f"  {kept} instead of {', '.join(others)}" for kept, *others in self.copies]
        if self.repeated:
            lines.append(f"{counted(self.repeated, 'row')} that say of an image what another one says of it")
        return lines or ["nothing is there twice"]


def dedupe(splits: DataSplits, *, near: bool = False) -> Deduped:
    """Leave one image of each that is there several times, with all that is said of any of them.

    With ``near`` also of those that are nearly the same, which may be different ones: look at the groups first. The one
    with the most pixels stays, of equally large ones the one with the most bytes. What is said of the others is said of
    it, in the part where it is; equal rows are one.

    Raises:
        UsageError: It is a stream.
        ImageError: An image cannot be read.
        MissingExtra: The library for near duplicates is not installed.
    """
    if splits.streamed:
        raise UsageError("A stream has no duplicates that could be known; leave out --streaming.")
    parts = {**splits.parts(), "train": [*splits.train, *splits.shared]}
    examples = [example for part in parts.values() for example in part]
    firsts = list({example.image_digest(): example for example in reversed(examples)}.values())[::-1]
    stays = {first.image_digest(): first for first in firsts}
    groups = []
    for group in _near(firsts) if near else ():
        kept, *others = sorted((firsts[number] for number in group), key=_size, reverse=True)
        groups.append((kept.name, *(other.name for other in others)))
        stays |= {other.image_digest(): kept for other in others}
    part_of = {example.image_digest(): name for name, part in parts.items() for example in part}
    rows: dict[tuple[str, str, str, tuple[str, ...]], tuple[str, Example]] = {}
    for example in examples:
        kept = stays[example.image_digest()]
        one = replace(example, image=kept.image, digest=kept.image_digest())
        key = (one.digest, one.question, one.target, one.answers)
        rows.setdefault(key, (part_of[one.digest], one))
    left = {name: [one for part, one in rows.values() if part == name] for name in parts}
    without = replace(splits, **left, shared=(), duplicates=0)  # type: ignore[arg-type]
    return Deduped(without, tuple(groups), _copies(examples), len(examples) - len(rows))


def _copies(examples: Sequence[Example]) -> tuple[tuple[str, ...], ...]:
    """Rows of equal files, one for each name of the file."""
    names: dict[str, dict[str, str]] = {}
    for example in examples:
        if isinstance(example.image, str | Path):
            names.setdefault(example.image_digest(), {}).setdefault(str(example.image), example.name)
    return tuple(tuple(own.values()) for own in names.values() if len(own) > 1)


def _near(firsts: Sequence[Example]) -> list[list[int]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return near_duplicates(pool.map(lambda example: Looks.of(example.open_image()), firsts))


def _size(example: Example) -> tuple[int, int]:
    """Pixels, and bytes of the file: a copy that was compressed once more has fewer."""
    picture, image = example.open_image(), example.image
    stored = os.path.getsize(image) if isinstance(image, str | Path) else len(image) if isinstance(image, bytes) else 0
    return picture.width * picture.height, stored
