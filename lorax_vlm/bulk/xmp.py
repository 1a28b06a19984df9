"""Texts inside image files, as photo managers read them: XMP, whose ``dc:description`` is the text. No torch.

A text of several parts with commas between them, as tags are written, gives its parts as keywords (``dc:subject``),
too. Only the description and those keywords change; the pixels stay as they are stored, bit for bit.

What is going to be written is noted first, as of text files: whoever was killed in between finds it out at the next
run.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import AT_ONCE, Journal, Said, SeenImage, Stamp, Written
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.sidecars import Sidecar, chosen_label, content_of, digest_of, found_in, may_write
from lorax_vlm.bulk.standing import Standing, holding, looked_up
from lorax_vlm.errors import ImageError, LoraxError, MissingExtra, PathError
from lorax_vlm.paths import naming, rewrite

T = TypeVar("T")
_DESCRIPTION, _KEYWORDS, _LANGUAGE = "Xmp.dc.description", "Xmp.dc.subject", 'lang="x-default"'
_TEXT, _MADE_OF = "xmp ", "xmp of "
"""Before the names of images in the journal's list of files: what was written, and into which image."""
_PENDING = "xmp pending"
"""Fact: the image that is being changed in its place, and what its digest is going to be."""


@dataclass
class Described:
    """What came of writing into images."""

    written: int = 0
    left: int = 0
    """Images that have a description by somebody else."""
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    """Item, kind and reason."""
    stopped: bool = False
    """Whether it ended before the last image."""


@dataclass(frozen=True)
class _Place:
    """Where a text goes, and what was written there before."""

    source: Path
    target: Path
    """The same, or a copy in another folder."""
    sidecar: Sidecar
    written: Written | None
    made_of: Written | None
    """``digest`` of the image that the target was made of, and our keywords in ``before``."""

    @property
    def in_place(self) -> bool:
        """Whether the image itself is changed."""
        return self.source == self.target


def write_descriptions(
    order: BulkOrder, journal: Journal, stopped: Callable[[], bool], written: Callable[[str], object]
) -> Described:
    """Write the text about each image into it, or into a copy of it where the output is another folder.

    Args:
        order: What is wanted; ``existing`` is about descriptions.
        journal: What was said, and what was written before.
        stopped: Whether to end after the image that is being written.
        written: Is told the name of each image whose turn it was.

    Raises:
        MissingExtra: pyexiv2 is not installed.
        PathError: The output cannot be written, such as on a full disk.
    """
    pyexiv2, done = require_library(), Described()
    for (item, before), place in _placed(order, journal, looked_up(order.items, journal), lambda pair: pair[0]):
        said = holding(item, order.columns, before)
        if place is None or len(said) < len(order.columns) or _is_done(order, place, said, item):
            continue
        if stopped():
            done.stopped = True
            break
        try:
            _describe(pyexiv2, order, journal, item, place, said, done)
        except PathError:
            raise
        except LoraxError as error:
            done.failures.append((item.name, type(error).__name__, str(error)))
        written(item.name)
    return done


def with_described(
    order: BulkOrder, journal: Journal, standings: Iterable[Standing]
) -> Iterator[tuple[Standing, bool]]:
    """Each with whether its image holds its text, or cannot hold one, as far as is known without reading it."""
    for standing, place in _placed(order, journal, standings, lambda standing: standing.item):
        yield standing, place is None or _is_done(order, place, standing.known, standing.item)


def settle(order: BulkOrder, journal: Journal) -> None:
    """Find out what became of an image that was being changed when its process was killed.

    Raises:
        PathError: It cannot be read.
    """
    pending = journal.fact(_PENDING)
    if not pending:
        return
    name, former, new = pending
    for item, place in _placed(order, journal, (item for item in order.items if item.name == name), lambda item: item):
        if place is None:
            break
        with naming(place.target):
            if hashlib.sha256(place.target.read_bytes()).hexdigest() == new:
                _settled(journal, item, place, former, new)
                return
    with journal.changing():
        journal.note_facts({_PENDING: None})


def _placed(
    order: BulkOrder, journal: Journal, things: Iterable[T], item_of: Callable[[T], Item]
) -> Iterator[tuple[T, _Place | None]]:
    """Things with the places of their items; None for what is no file here."""
    source = iter(things)
    while some := list(islice(source, AT_ONCE)):
        files = journal.files([mark + item_of(thing).name for thing in some for mark in (_TEXT, _MADE_OF)])
        yield from ((thing, _place(order, files, item_of(thing))) for thing in some)


def _place(order: BulkOrder, files: Mapping[str, Written], item: Item) -> _Place | None:
    if not isinstance(item.image, Path) or item.problem is not None:
        return None
    source = Path(os.path.realpath(item.image))  # of a link the file is changed, and the link stays one
    target = Path(os.path.realpath(order.out / item.name))
    text, made_of = _TEXT + item.name, _MADE_OF + item.name
    return _Place(source, target, Sidecar(text, order.labels), files.get(text), files.get(made_of))


def _text(order: BulkOrder, item: Item, said: dict[str, Said]) -> str:
    label = chosen_label(said, order.pick)
    return order.text(item, label, said[label].text)


def _is_done(order: BulkOrder, place: _Place, said: dict[str, Said], item: Item) -> bool:
    """Whether an image holds its text, as far as can be known without reading it."""
    written = place.written
    if written is None or written.labels != place.sidecar.about or written.stamp is None or not said:
        return False
    if not place.in_place and (place.made_of is None or place.made_of.digest != next(iter(said.values())).image):
        return False
    try:
        if written.stamp != Stamp.of(os.stat(place.target)):
            return False
    except OSError:
        return False
    found = found_in(written.before, place.sidecar, written, written.stamp)
    content, _ = content_of(_text(order, item, said), found, order.existing)
    return digest_of(content) == written.digest


def _describe(
    pyexiv2: Any,
    order: BulkOrder,
    journal: Journal,
    item: Item,
    place: _Place,
    said: dict[str, Said],
    done: Described,
) -> None:
    data, seen = item.read(), next(iter(said.values())).image
    if hashlib.sha256(data).hexdigest() != seen:
        return  # it has changed since it was looked at; the next run asks again
    there = _there(place, order.existing)
    same = there is not None and place.made_of is not None and place.made_of.digest == seen
    onto = there if there is not None and same else data  # what somebody put into a copy stays
    text, former = _text(order, item, said), _our_keywords(place)
    try:
        before = _description(pyexiv2, data if there is None else there)
        found = found_in(before.encode() if before else None, place.sidecar, place.written, None)
        if not may_write(found, order.existing):
            done.left += 1
            return
        content, kept = content_of(text, found, order.existing)
        new, keywords = _with_text(pyexiv2, onto, content.decode("utf-8", "replace"), text, former)
    except (RuntimeError, ValueError, OSError) as error:  # as exiv2 says of formats that hold none, and of damaged ones
        raise ImageError(item.name, f"no text can be written into it: {error}") from error
    digest = hashlib.sha256(new).hexdigest()
    with journal.changing():
        journal.note_file(place.sidecar.path, Written(place.sidecar.about, digest_of(content), kept, None))
        made_of = Written("", digest if place.in_place else seen, json.dumps(keywords).encode(), None)
        journal.note_file(_MADE_OF + item.name, made_of)
        if place.in_place:
            journal.note_facts({_PENDING: [item.name, seen, digest]})
    with naming(place.target):
        place.target.parent.mkdir(parents=True, exist_ok=True)
        rewrite(place.target, new, None if place.target.exists() else place.source)
    _settled(journal, item, place, seen, digest)
    done.written += bool(content.strip())


def _there(place: _Place, existing: str) -> bytes | None:
    """The copy that was written before; None where there is none, or the image itself is changed.

    Raises:
        ImageError: Another file is there.
    """
    if place.in_place:
        return None
    with naming(place.target):
        if not place.target.exists():
            return None
        if place.written is None:
            if existing == "overwrite-all":
                return None
            reason = f"{place.target} is there already and was not written here. Name another folder."
            raise ImageError(place.sidecar.path.removeprefix(_TEXT), reason)
        return place.target.read_bytes()


def _with_text(pyexiv2: Any, data: bytes, description: str, text: str, former: list[str]) -> tuple[bytes, list[str]]:
    """An image file with a text, and the keywords in it that are ours."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    ours = parts if len(parts) > 1 else []
    with pyexiv2.ImageData(data) as image:
        there = image.read_xmp().get(_KEYWORDS)
        theirs = [word for word in map(str, there if isinstance(there, list | tuple) else []) if word not in former]
        changes: dict[str, Any] = {_DESCRIPTION: {_LANGUAGE: description}}
        if ours or former:
            changes[_KEYWORDS] = list(dict.fromkeys([*theirs, *ours])) or None
        image.modify_xmp(changes)
        new: bytes = image.get_bytes()
    return new, [word for word in ours if word not in theirs]


def _our_keywords(place: _Place) -> list[str]:
    return [] if place.made_of is None or place.made_of.before is None else list(json.loads(place.made_of.before))


def _description(pyexiv2: Any, data: bytes) -> str:
    with pyexiv2.ImageData(data) as image:
        former = image.read_xmp().get(_DESCRIPTION)
    if isinstance(former, dict):
        former = former.get(_LANGUAGE) or next(iter(former.values()), "")
    return str(former or "")


def _settled(journal: Journal, item: Item, place: _Place, former: str, new: str) -> None:
    """Note that a text is where it belongs. An image that was itself changed is the one that its texts are about."""
    with naming(place.target):
        stamp = Stamp.of(os.stat(place.target))
    written = journal.file(place.sidecar.path)
    said = journal.known([item.name])[item.name].said if place.in_place else {}
    with journal.changing():
        if written is not None:
            journal.note_file(place.sidecar.path, replace(written, stamp=stamp))
        if place.in_place:
            journal.note_image(item.name, SeenImage(new, item.stamp()))
            journal.note_texts(
                item.name, {label: replace(one, image=new) for label, one in said.items() if one.image == former}
            )
            journal.note_facts({_PENDING: None})


def require_library() -> Any:
    """What writes texts into images.

    Raises:
        MissingExtra: It is not installed; found out before anything is asked.
    """
    try:
        import pyexiv2
    except ImportError:
        raise MissingExtra("pyexiv2", "xmp", "Writing texts into images") from None
    pyexiv2.set_log_level(4)  # what it would say of odd files is said by its errors
    return pyexiv2
