"""Text files, one for each image or for each image and column: what is there, and what may be written. No torch.

What somebody wrote by hand is never written over unless that was asked for: the journal knows what was written here.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Literal

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import Said, Stamp, Written
from lorax_vlm.errors import PathError
from lorax_vlm.paths import scratch_name

Existing = Literal["skip", "overwrite", "overwrite-all", "append", "prepend"]
EXISTING: tuple[Existing, ...] = ("skip", "overwrite", "overwrite-all", "append", "prepend")
Holds = Literal["nothing", "ours", "begun", "others", "by hand"]
"""What is in the place of a text file: what was written here for the same columns, what was there before that was to be
written, what was written here for other columns, or anything else."""
_JOINT = ", "
_RIGHTS = 0o666
"""Less what the user's mask takes away, as of any file."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True)
class Sidecar:
    """The text file of an item, for one or more columns."""

    path: str
    """Below the output."""
    labels: tuple[str, ...]

    @property
    def about(self) -> str:
        """The labels, as the journal keeps them."""
        return " ".join(self.labels)


@dataclass(frozen=True)
class Found:
    """What is in the place of a text file."""

    holds: Holds
    written: Written | None = None
    content: bytes | None = None
    """Of what may be added to."""
    stamp: Stamp | None = None
    """Of the file; None where there is none."""

    @property
    def in_part(self) -> bool:
        """Whether a part of what was written here was there before."""
        return self.written is not None and self.written.before is not None


def sidecars_of(item: Item, labels: Sequence[str], *, picked: bool) -> list[Sidecar]:
    """The text files of an item: one where one text is written, else one for each column."""
    if len(labels) == 1 or picked:
        return [Sidecar(f"{item.stem}.txt", tuple(labels))]
    return [Sidecar(f"{item.stem}.{label}.txt", (label,)) for label in labels]


def look_at(root: Path, sidecar: Sidecar, written: Written | None) -> Found:
    """What is in its place; ``written`` is what was written there last.

    Raises:
        PathError: It cannot be read.
    """
    path = os.path.join(root, sidecar.path)
    try:
        stamp = Stamp.of(os.stat(path))
        if written is not None and written.stamp == stamp and _whose(written, sidecar) == "ours":
            return Found("ours", written, stamp=stamp)
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return found_in(None, sidecar, written, None)
    except OSError as error:
        raise PathError.of(path, error) from error
    return found_in(content, sidecar, written, stamp)


def found_in(content: bytes | None, sidecar: Sidecar, written: Written | None, stamp: Stamp | None) -> Found:
    """Whose a text is that is there; None for none. ``written`` is what was written there last."""
    if content is None:
        return Found("begun" if written is not None and written.before is not None else "nothing", written)
    if written is not None and digest_of(content) == written.digest:
        return Found(_whose(written, sidecar), written, content, stamp)
    if not content.strip(b"\0 \r\n\t"):
        return Found("nothing", written, stamp=stamp)
    if written is None:
        return Found("by hand", None, content, stamp)
    return Found("begun" if content == written.before else "by hand", written, content, stamp)


def _whose(written: Written, sidecar: Sidecar) -> Holds:
    return "ours" if written.labels == sidecar.about else "others"


def may_write(found: Found, existing: Existing) -> bool:
    """Whether a text file may be written, as far as what is there is concerned."""
    if existing == "overwrite-all" or found.holds in ("nothing", "begun"):
        return True
    adds = existing in ("append", "prepend")
    if found.holds == "ours":
        return adds or not found.in_part
    if found.holds == "others":
        return adds or (existing == "overwrite" and not found.in_part)
    return adds and found.written is None  # what was edited after it was written has its text already


def content_of(text: str, found: Found, existing: Existing) -> tuple[bytes, bytes | None]:
    """What is to be written, and what was there that it is added to."""
    own = text.encode("utf-8", "backslashreplace")
    if existing not in ("append", "prepend"):
        return own, None
    former = found.written.before if found.written is not None else None
    before = found.content if found.holds in ("by hand", "others") else former
    kept = (before or b"").strip()
    if not kept:
        return own, before
    joint = _JOINT.encode()
    if own and joint + own + joint in joint + kept + joint:
        return kept, before  # it was added before
    parts = (kept, own) if existing == "append" else (own, kept)
    return joint.join(parts), before


def still_holds(root: Path, sidecar: Sidecar, found: Found) -> bool:
    """Whether what was found in a place is there still: somebody may have written there since.

    Raises:
        PathError: It cannot be looked at.
    """
    place = os.path.join(root, sidecar.path)
    try:
        return found.stamp == Stamp.of(os.stat(place))
    except FileNotFoundError:
        return found.stamp is None
    except OSError as error:
        raise PathError.of(place, error) from error


def write_text(root: Path, path: str, content: bytes) -> Stamp:
    """Write a text file whole, and say what it looks like then; for very many of them, so without pathlib.

    It does not wait for the disk: the journal has, and what a power failure empties is written again.

    Raises:
        PathError: It cannot be written.
    """
    place = os.path.join(root, path)
    folder = os.path.dirname(place)
    scratch = os.path.join(folder, scratch_name())
    try:
        try:
            handle = os.open(scratch, _NEW, _RIGHTS)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            handle = os.open(scratch, _NEW, _RIGHTS)
        try:
            with os.fdopen(handle, "wb", buffering=0) as file:
                _write_all(file, content)
                stamp = Stamp.of(os.fstat(file.fileno()))
            os.replace(scratch, place)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise
    except OSError as error:
        raise PathError.of(place, error) from error
    return stamp


def _write_all(file: RawIOBase, content: bytes) -> None:
    """Also where the system takes a part at a time."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) or 0 :]


def digest_of(content: bytes) -> str:
    """SHA-256 of what is written."""
    return hashlib.sha256(content).hexdigest()


def chosen_label(texts: Mapping[str, Said], pick: str | None) -> str:
    """Which of several texts is written: the ``first`` column's, the ``longest`` or the ``likeliest``.

    One that is empty only if all are; of equally long or likely ones the first.
    """
    labels = [label for label, said in texts.items() if said.text.strip()] or list(texts)
    if pick == "likeliest":
        return max(labels, key=lambda label: texts[label].likelihood or 0.0)
    return max(labels, key=lambda label: len(texts[label].text)) if pick == "longest" else labels[0]
