"""What a bulk job is about to do, and what it did, in numbers. No torch."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorax_vlm.bulk.standing import WHYS, Standing
from lorax_vlm.types import counted


@dataclass
class BulkPlan:
    """What is there and what is to be done; counted, not kept."""

    noun: str = "image"
    """What is counted: images, or rows."""
    images: int = 0
    done: int = 0
    """Images about which everything is said and written."""
    staying: int = 0
    """Images of which no text file may be written, for all that are there stay, and nothing else is wanted."""
    to_ask: int = 0
    """Images that are to be looked at."""
    to_write: int = 0
    """Images whose texts are known and only to be written."""
    to_describe: int = 0
    """Images that a text is to be written into, and nothing else is to be done about."""
    texts: Counter[str] = field(default_factory=Counter)
    """Texts that are to be made, by why."""
    kept: Counter[str] = field(default_factory=Counter)
    """Text files that stay, by whose they are."""
    written_over: int = 0
    """Text files by hand that are to be written over or added to."""

    def __post_init__(self) -> None:
        self._names = hashlib.sha256()

    @property
    def names(self) -> str:
        """Digest of the names of all images, in their order."""
        return self._names.hexdigest()

    def count(self, standing: Standing, *, writes: bool, describes: bool = False) -> None:
        """Add an item; ``writes`` is whether any of its files would change, ``describes`` whether the image would."""
        self.images += 1
        self._names.update(os.fsencode(standing.item.name) + b"\0")
        for _, found in standing.kept:
            self.kept["others" if found.holds == "others" and not found.in_part else "by hand"] += 1
        self.written_over += sum([found.holds == "by hand" for _, found in standing.write])
        if standing.wanted:
            self.texts.update(standing.wanted.values())
            self.to_ask += 1
        elif writes:
            self.to_write += 1
        elif describes:
            self.to_describe += 1
        elif standing.kept and not standing.write:
            self.staying += 1
        else:
            self.done += 1

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{counted(self.images, self.noun)}, {self.done:,} of them done"]
        said = [f"{self.texts[why]:,} {_REASONS[why]}" for why in WHYS if self.texts[why]]
        if said:
            texts, images = counted(sum(self.texts.values()), "text"), counted(self.to_ask, self.noun)
            lines.append(f"to be made: {texts} about {images} ({', '.join(said)})")
        if self.to_write:
            lines.append(f"to be written without asking again: the texts about {counted(self.to_write, self.noun)}")
        if self.to_describe:
            lines.append(f"to be written into {counted(self.to_describe, self.noun)}, which are asked about no more")
        if self.kept["by hand"]:
            lines.append(f"left as they are: {counted(self.kept['by hand'], 'text')} not written here")
        if self.kept["others"]:
            kept = f"{counted(self.kept['others'], 'text')} of other adapters"
            lines.append(f"left as they are: {kept}; --existing overwrite writes over them")
        if self.written_over:
            lines.append(f"to be changed: {counted(self.written_over, 'text')} not written here")
        return lines


_REASONS = {
    "new": "new",
    "another image": "whose image has changed",
    "another adapter": "of an adapter that has changed",
    "other settings": "with other settings",
    "failed before": "that failed before",
    "no likelihood": "whose likelihood was not asked for",
}


@dataclass
class BulkReport:
    """What a job did."""

    plan: BulkPlan
    out: str | Path
    texts: int = 0
    tokens: int = 0
    images: int = 0
    """About which something was said."""
    scored: int = 0
    """Texts of former runs whose likelihood was asked for."""
    failed: int = 0
    written: int = 0
    """Text files."""
    left: int = 0
    """Text files that somebody else wrote while the job ran; they stay."""
    described: int = 0
    """Images, or copies of them, that a text was written into."""
    described_left: int = 0
    """Images that have a description by somebody else."""
    marks: Counter[str] = field(default_factory=Counter)
    """Texts that are empty, cut off or repeat themselves."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Rows by path of table."""
    failures: str | Path | None = None
    """The list of what failed."""
    review: str | Path | None = None
    """The page of the least likely texts."""
    seconds: float = 0.0
    interrupted: bool = False

    def lines(self) -> list[str]:
        """For people."""
        rate = f", {self.images / self.seconds:.1f} {self.plan.noun}s a second" if self.images and self.seconds else ""
        about = f"{counted(self.texts, 'text')} about {counted(self.images, self.plan.noun)}"
        lines = [f"{about}, {counted(self.tokens, 'token')}, in {self.seconds:.0f} s{rate}"]
        if self.scored:
            lines.append(f"likelihoods of {counted(self.scored, 'text')} of former runs")
        if self.written:
            lines.append(f"written: {counted(self.written, 'text file')} in {self.out}")
        if self.described:
            lines.append(f"written: into {counted(self.described, 'image')} in {self.out}")
        if self.described_left:
            left = counted(self.described_left, "image")
            lines.append(f"left as they are: {left} with a description not written here")
        lines += [f"written: {path}, {counted(rows, 'row')}" for path, rows in self.tables.items()]
        if self.review:
            lines.append(f"written: {self.review}, the least likely texts")
        if self.marks:
            lines.append("look at: " + ", ".join(f"{count:,} {mark}" for mark, count in self.marks.most_common()))
        if self.left:
            lines.append(f"left as they are: {counted(self.left, 'text')} that somebody wrote meanwhile")
        if self.failed:
            lines.append(f"failed: {self.failed:,}, listed in {self.failures}")
        if self.interrupted:
            lines.append("stopped before the end; the same command goes on from here")
        return lines
