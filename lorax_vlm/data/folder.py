"""Captioned images in the Hugging Face ImageFolder convention.

    photos/metadata.jsonl          {"file_name": "cat.jpg", "caption": "a cat on a mat"}
    photos/cat.jpg

or the same inside ``train/`` and ``validation/`` (``val``, ``valid`` and ``test`` are not used for training). The
text column is ``caption`` or ``text``; a list of strings gives one example each.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.errors import DataError

METADATA = "metadata.jsonl"
TEXT_COLUMNS = ("caption", "text")
VALIDATION_FOLDERS = ("validation", "valid", "val")
_FORMAT_HINT = (
    f'Each line of {METADATA} is an object such as {{"file_name": "cat.jpg", "caption": "a cat on a mat"}}. '
    "Correct the rows, or leave them out with --skip-bad-rows."
)


def read_caption_folder(
    folder: str | Path, *, validation_share: float = 0.1, skip_bad_rows: bool = False
) -> DataSplits:
    """Read a caption folder into training and validation examples.

    Without a validation folder, images are held out by a hash of their name: the same ones on every run and machine,
    and all captions of an image on the same side.

    Args:
        folder: The folder with ``metadata.jsonl``, or with ``train/metadata.jsonl``.
        validation_share: Share of images held out when there is no validation folder, above 0 and below 1.
        skip_bad_rows: Leave malformed rows out (they stay listed in the result) instead of raising.

    Raises:
        DataError: There is no such data, a row is malformed, or a split would be empty; every row is listed.
    """
    root = Path(folder).expanduser()
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must be above 0 and below 1, got {validation_share}.")
    train_folder = root / "train" if (root / "train" / METADATA).is_file() else root
    if not (train_folder / METADATA).is_file():
        raise DataError(str(root), [f"neither {METADATA} nor train/{METADATA} exists"], _FORMAT_HINT)
    problems: list[str] = []
    examples = list(_read_split(train_folder, problems))
    held_out_folder = next((root / n for n in VALIDATION_FOLDERS if (root / n / METADATA).is_file()), None)
    if held_out_folder is not None and train_folder != root:
        train, validation = examples, list(_read_split(held_out_folder, problems))
    else:
        train = [e for e in examples if not _is_held_out(e, validation_share)]
        validation = [e for e in examples if _is_held_out(e, validation_share)]
        if not validation and examples:  # a tiny folder can hash to one side: hold out its last image
            last = examples[-1].image
            train, validation = [e for e in train if e.image != last], [e for e in train if e.image == last]
    if problems and not skip_bad_rows:
        raise DataError(str(root), problems, _FORMAT_HINT)
    if not train or not validation:
        raise DataError(
            str(root), [f"{len(train)} training and {len(validation)} validation examples; both need at least one"]
        )
    return DataSplits(train, validation, str(root), tuple(problems))


def _is_held_out(example: Example, share: float) -> bool:
    digest = hashlib.sha256(Path(str(example.image)).name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _read_split(folder: Path, problems: list[str]) -> Iterator[Example]:
    path = folder / METADATA
    inside = folder.resolve()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            row = _parse_row(line)
            reason = row if isinstance(row, str) else _row_problem(row, folder, inside)
            if reason is not None:
                problems.append(f"{place}: {reason}")
                continue
            assert isinstance(row, dict)
            captions = _captions(row)
            for caption in captions:
                yield Example(folder / row["file_name"], caption, place)


def _parse_row(line: bytes) -> dict[str, Any] | str:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        return f"not UTF-8 text: {error.reason} at byte {error.start}"
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    return row if isinstance(row, dict) else f"expected an object, found {type(row).__name__}"


def _captions(row: dict[str, Any]) -> list[Any]:
    value = next((row[column] for column in TEXT_COLUMNS if column in row), None)
    return value if isinstance(value, list) else [value]


def _row_problem(row: dict[str, Any], folder: Path, inside: Path) -> str | None:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return f"no 'file_name' (columns: {', '.join(map(str, row))})"
    if not any(column in row for column in TEXT_COLUMNS):
        return f"neither 'caption' nor 'text' (columns: {', '.join(map(str, row))})"
    captions = _captions(row)
    if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
        return "the caption is empty or not text"
    return _file_problem(name, folder, inside)


def _file_problem(name: str, folder: Path, inside: Path) -> str | None:
    path = folder / name
    if not path.resolve().is_relative_to(inside):
        return f"file_name {name!r} leads out of the folder"
    if not path.is_file():
        return f"file {name!r} does not exist"
    try:
        with Image.open(path) as image:
            image.verify()  # what can be told without decoding; the rest shows when it is read for training
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"file {name!r} is not a readable image ({type(error).__name__})"
    return None
