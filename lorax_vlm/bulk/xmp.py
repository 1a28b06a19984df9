"""Texts inside image files, as photo managers read them: XMP, whose ``dc:description`` is the text. No torch.

A text of several parts with commas between them, as tags are written, gives its parts as keywords (``dc:subject``),
too. Only the description and those keywords change; the pixels stay as they are stored, bit for bit.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import Journal, SeenImage, Stamp, Written
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.sidecars import Sidecar, chosen_label, content_of, digest_of, found_in, may_write
from lorax_vlm.bulk.standing import holding, looked_up
from lorax_vlm.errors import ImageError, LoraxError, MissingExtra, PathError
from lorax_vlm.paths import naming, written_whole

_DESCRIPTION, _KEYWORDS, _LANGUAGE = "Xmp.dc.description", "Xmp.dc.subject", 'lang="x-default"'
_FILE = "xmp "
"""Before the names of images in the journal's list of files, so that they are no text files."""


@dataclass
class Described:
    """What came of writing into images."""

    written: int = 0
    left: int = 0
    """Images that have a description by somebody else."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Item, kind and reason."""


def write_descriptions(order: BulkOrder, journal: Journal, stopped: Callable[[], bool]) -> Described:
    """Write the text about each image into it, or into a copy of it where the output is another folder.

    Args:
        order: What is wanted; ``existing`` is about descriptions.
        journal: What was said, and what was written before.
        stopped: Whether to end after the image that is being written.

    Raises:
        MissingExtra: pyexiv2 is not installed.
        PathError: The output cannot be written, such as on a full disk.
    """
    pyexiv2, done = _library(), Described()
    for item, text, labels, seen in _texts(order, journal):
        if stopped():
            break
        source = Path(os.path.realpath(str(item.image)))  # of a link the file is changed, and the link stays one
        target = Path(os.path.realpath(order.out / item.name))
        sidecar, written = Sidecar(_FILE + item.name, labels), journal.file(_FILE + item.name)
        if _is_done(order, sidecar, written, text, target):
            continue
        try:
            data = item.read()
            if hashlib.sha256(data).hexdigest() != seen:
                continue  # it has changed since it was looked at; the next run asks again
            there = _copy(target, written) if target != source else data
            new, note = _described(pyexiv2, order, sidecar, written, text, data, there)
        except LoraxError as error:
            done.failures.append((item.name, type(error).__name__, str(error)))
            continue
        if new is None or note is None:
            done.left += 1
            continue
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as file:
                file.write(new)
            if target != source:
                shutil.copymode(source, target)
        _note(journal, item, sidecar, note, target, new if target == source else None)
        done.written += 1
    return done


def _copy(target: Path, written: Written | None) -> bytes | None:
    """The copy that was written before; None where there is none.

    Raises:
        PathError: Another file is there.
    """
    with naming(target):
        if not target.exists():
            return None
        if written is None:
            raise PathError(str(target), "there is a file already that was not written here", "Name another folder.")
        return target.read_bytes()


def _texts(order: BulkOrder, journal: Journal) -> Iterator[tuple[Item, str, tuple[str, ...], str]]:
    """Items about which everything was said, with the text, its columns, and the digest of the image."""
    for item, before in looked_up(order.items, journal):
        said = holding(item, order.columns, before)
        if len(said) == len(order.columns) and isinstance(item.image, Path) and item.problem is None:
            label = chosen_label(said, order.pick)
            yield item, order.text(item, label, said[label].text), order.labels, said[label].image


def _is_done(order: BulkOrder, sidecar: Sidecar, written: Written | None, text: str, target: Path) -> bool:
    """Whether an image holds its text, as far as can be known without reading it."""
    if written is None or written.labels != sidecar.about or written.stamp is None:
        return False
    try:
        if written.stamp != Stamp.of(os.stat(target)):
            return False
    except OSError:
        return False
    content, _ = content_of(text, found_in(written.before, sidecar, written, written.stamp), order.existing)
    return digest_of(content) == written.digest


def _described(
    pyexiv2: Any,
    order: BulkOrder,
    sidecar: Sidecar,
    written: Written | None,
    text: str,
    data: bytes,
    there: bytes | None,
) -> tuple[bytes | None, Written | None]:
    """An image file with its text, and what to note of it; None where somebody's description stays that is there."""
    try:
        before = _description(pyexiv2, data if there is None else there)
        found = found_in(before.encode() if before else None, sidecar, written, None)
        if not may_write(found, order.existing):
            return None, None
        with pyexiv2.ImageData(data) as image:
            xmp = image.read_xmp()
            content, kept = content_of(text, found, order.existing)
            changes: dict[str, Any] = {_DESCRIPTION: {_LANGUAGE: content.decode("utf-8", "replace")}}
            if keywords := _keywords(text, xmp.get(_KEYWORDS)):
                changes[_KEYWORDS] = keywords
            image.modify_xmp(changes)
            new: bytes = image.get_bytes()
    except (RuntimeError, ValueError, OSError) as error:  # as exiv2 says of formats that hold none, and of damaged ones
        raise ImageError(sidecar.path.removeprefix(_FILE), f"no text can be written into it: {error}") from error
    return new, Written(sidecar.about, digest_of(content), kept, None)


def _description(pyexiv2: Any, data: bytes) -> str:
    with pyexiv2.ImageData(data) as image:
        former = image.read_xmp().get(_DESCRIPTION)
    if isinstance(former, dict):
        former = former.get(_LANGUAGE) or next(iter(former.values()), "")
    return str(former or "")


def _keywords(text: str, former: object) -> list[str]:
    """Those that are there and the parts of a text; none for a text of one part."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    there = [str(word) for word in former] if isinstance(former, list | tuple) else []
    return list(dict.fromkeys([*there, *parts])) if len(parts) > 1 else []


def _note(journal: Journal, item: Item, sidecar: Sidecar, note: Written, target: Path, new: bytes | None) -> None:
    """Remember what was written. An image that was itself changed is the one that its texts are about."""
    with naming(target):
        stamp = Stamp.of(os.stat(target))
    with journal.changing():
        journal.note_file(sidecar.path, replace(note, stamp=stamp))
        if new is not None:
            digest = hashlib.sha256(new).hexdigest()
            journal.note_image(item.name, SeenImage(digest, item.stamp()))
            said = journal.known([item.name])[item.name].said
            journal.note_texts(item.name, {label: replace(one, image=digest) for label, one in said.items()})


def _library() -> Any:
    try:
        import pyexiv2
    except ImportError:
        raise MissingExtra("pyexiv2", "xmp", "Writing texts into images") from None
    pyexiv2.set_log_level(4)  # what it would say of odd files is said by its errors
    return pyexiv2


def require_library() -> None:
    """Find out before anything is asked whether texts can be written into images.

    Raises:
        MissingExtra: pyexiv2 is not installed.
    """
    _library()
