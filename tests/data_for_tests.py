"""Data sets of small pictures, each with a colour of its own, written in the ways that people write them."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lorax_vlm.data.examples import DataSplits, Example


def picture(number: int, size: tuple[int, int] = (6, 5)) -> Image.Image:
    """The picture of a number, unlike that of any other below 2**24."""
    return Image.new("RGB", size, (number % 256, number // 256 % 256, 7 + number // 65536))


def png(number: int) -> bytes:
    """The file of a picture."""
    data = io.BytesIO()
    picture(number).save(data, "PNG")
    return data.getvalue()


def write_pictures(folder: Path, names: Iterable[str], first: int = 0) -> list[str]:
    """Write a picture for each name, numbered from ``first``; the names."""
    written = list(names)
    for number, name in enumerate(written, start=first):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return written


def numbered(count: int, suffix: str = ".png") -> list[str]:
    """Names ``0.png``, ``1.png``, ..."""
    return [f"{number}{suffix}" for number in range(count)]


def write_rows(folder: Path, rows: Sequence[object], name: str = "metadata.jsonl", encoding: str = "utf-8") -> Path:
    """Write lines of JSON; texts as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder


def captioned(names: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each name."""
    return [{"file_name": name, "caption": f"caption of {name}"} for name in names]


def write_json(path: Path, document: Any, encoding: str = "utf-8") -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(document), encoding=encoding)
    return path


def all_examples(splits: DataSplits) -> list[Example]:
    """Of all parts."""
    return [example for part in splits.parts().values() for example in part]


def targets(examples: Iterable[Example]) -> list[str]:
    """What is learnt."""
    return [example.target for example in examples]


def image_names(examples: Iterable[Example]) -> list[str]:
    """The names of the files, in the order of what is learnt from them."""
    return [Path(str(example.image)).name for example in examples]
