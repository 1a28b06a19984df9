"""Captions in text files beside the images: ``cat.jpg`` and ``cat.txt`` or ``cat.caption``. The whole file is one."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax_vlm.data.readers.listing import is_image_name, walk
from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import decode_text, quoted

CAPTION_SUFFIXES = (".txt", ".caption")
_MOST_BYTES = 2**20


def captioned_images(root: Path) -> list[tuple[Path, Any | MalformedRow]]:
    """Every image below a folder with its row, or with what is wrong; none when no image has a text beside it."""
    images: dict[Path, list[Path]] = defaultdict(list)
    texts: dict[Path, list[Path]] = defaultdict(list)
    for path in walk(root):
        if is_image_name(path.name):
            images[path.with_suffix("")].append(path)
        elif path.suffix.lower() in CAPTION_SUFFIXES:
            texts[path.with_suffix("")].append(path)
    return list(_rows(root, images, texts)) if images.keys() & texts.keys() else []


def _rows(root: Path, images: dict[Path, list[Path]], texts: dict[Path, list[Path]]) -> Iterator[tuple[Path, Any]]:
    for stem, found in images.items():
        for image in found:
            try:
                if len(found) > 1 and stem in texts:
                    names = ", ".join(quoted(path.name) for path in found)
                    raise MalformedRow(f"{len(found)} images have one text beside them: {names}", wanted="one image")
                caption = _caption(texts.get(stem, []))
                yield image, {"file_name": str(image.relative_to(root)), "caption": caption}
            except MalformedRow as wrong:
                yield image, wrong


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
