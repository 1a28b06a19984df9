"""Captions in text files beside the images: ``cat.jpg`` and ``cat.txt`` or ``cat.caption``. The whole file is one.

Where two images would share a text, as with ``cat.png`` beside it, theirs are ``cat.jpg.txt`` and ``cat.png.txt``.

No torch.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax_vlm.data.readers.listing import is_image_name, text_stems, walk
from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import decode_text, quoted

CAPTION_SUFFIXES = (".txt", ".caption")
_MOST_BYTES = 2**20


def captioned_images(root: Path) -> list[tuple[Path, Any | MalformedRow]]:
    """Every image below a folder with its row, or with what is wrong; none when no image has a text beside it."""
    rows = _all_rows(root)
    some = any(beside for _, beside, _ in rows)
    return [(image, _row(image.relative_to(root), beside, others)) for image, beside, others in rows] if some else []


def text_files(root: Path) -> list[Path]:
    """The text files that are captions of images below a folder, each once, in order."""
    return sorted({path for _, beside, _ in _all_rows(root) for path in beside if path.is_file()})


def _all_rows(root: Path) -> list[tuple[Path, list[Path], list[str]]]:
    images: dict[Path, list[str]] = defaultdict(list)
    texts: dict[Path, list[Path]] = defaultdict(list)
    for path in walk(root):
        if is_image_name(path.name):
            images[path.parent].append(path.name)
        elif path.suffix.lower() in CAPTION_SUFFIXES:
            texts[path.with_suffix("")].append(path)
    return [row for folder, names in images.items() for row in _rows(folder, names, texts)]


def _rows(
    folder: Path, names: list[str], texts: dict[Path, list[Path]]
) -> Iterator[tuple[Path, list[Path], list[str]]]:
    """The images of a folder, each with the texts that are called after it, and the images that it shares them with."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[os.path.splitext(name)[0]].append(name)
    for name, own in zip(names, text_stems(names), strict=True):
        stem = os.path.splitext(name)[0]
        beside = texts.get(folder / own, [])
        alone = bool(beside) or len(alike[stem]) == 1
        yield folder / name, beside or texts.get(folder / stem, []), [] if alone else alike[stem]


def _row(name: Path, beside: list[Path], sharing: list[str]) -> Any | MalformedRow:
    try:
        if beside and sharing:
            names = ", ".join(map(quoted, sharing))
            raise MalformedRow(f"{len(sharing)} images have one text beside them: {names}", wanted="one image")
        return {"file_name": str(name), "caption": _caption(beside)}
    except MalformedRow as wrong:
        return wrong


def _caption(beside: list[Path]) -> str:
    if not beside:
        raise MalformedRow("no text beside it", field="caption", wanted="a file of the same name with .txt or .caption")
    said = {_text(path) for path in beside}
    if len(said) > 1:
        names = ", ".join(quoted(path.name) for path in beside)
        raise MalformedRow(f"the texts beside it differ: {names}", field="caption", wanted="one text")
    return said.pop()


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise MalformedRow(f"{quoted(path.name)} is no file", field="caption")
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise MalformedRow(f"{quoted(path.name)} has more than {_MOST_BYTES:,} bytes", field="caption")
        return decode_text(data).strip()
    except OSError as error:
        raise MalformedRow(f"{quoted(path.name)} cannot be read: {error.strerror or error}", field="caption") from error
    except MalformedRow:
        raise
    except ValueError as error:
        raise MalformedRow(f"{quoted(path.name)} is {error}", field="caption") from error
