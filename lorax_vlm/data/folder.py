"""Images with captions or questions in the Hugging Face ImageFolder convention.

    photos/metadata.jsonl          {"file_name": "cat.jpg", "caption": "a cat on a mat"}
                                   {"file_name": "cat.jpg", "question": "What animal is it?", "answer": "cat"}
    photos/cat.jpg

or the same inside ``train/`` and ``validation/`` (``val``, ``valid`` and ``test`` are not used for training). The
text column is ``caption`` or ``text``; a list of strings gives one example each. A row with a ``question`` has an
``answer``, or ``answers`` with what each annotator said, and perhaps a ``type``.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.splitting import hold_out, image_file_problem, make_splits
from lorax_vlm.errors import DataError

METADATA = "metadata.jsonl"
TEXT_COLUMNS = ("caption", "text")
VALIDATION_FOLDERS = ("validation", "valid", "val")
_FORMAT_HINT = (
    f'Each line of {METADATA} is an object such as {{"file_name": "cat.jpg", "caption": "a cat on a mat"}} or '
    '{"file_name": "cat.jpg", "question": "What animal is it?", "answer": "cat"}. '
    "Correct the rows, or leave them out with --skip-bad-rows."
)


def read_image_folder(folder: str | Path, *, validation_share: float = 0.1, skip_bad_rows: bool = False) -> DataSplits:
    """Read a folder of images with captions or questions into training and validation examples.

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
    train_folder = root / "train" if (root / "train" / METADATA).is_file() else root
    if not (train_folder / METADATA).is_file():
        raise DataError(str(root), [f"neither {METADATA} nor train/{METADATA} exists"], _FORMAT_HINT)
    problems: list[str] = []
    examples = list(_read_split(train_folder, problems))
    held_out_folder = next((root / n for n in VALIDATION_FOLDERS if (root / n / METADATA).is_file()), None)
    if held_out_folder is not None and train_folder != root:
        train, validation = examples, list(_read_split(held_out_folder, problems))
    else:
        train, validation = hold_out(examples, lambda example: Path(str(example.image)).name, validation_share)
    return make_splits(train, validation, str(root), problems, skip_bad_rows=skip_bad_rows, hint=_FORMAT_HINT)


def _read_split(folder: Path, problems: list[str]) -> Iterator[Example]:
    for place, row in read_rows(folder, problems, _text_problem):
        yield from _examples(row, folder / row["file_name"], place)


def read_rows(
    folder: Path, problems: list[str], text_problem: Callable[[dict[str, Any]], str | None]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sound rows of a folder's ``metadata.jsonl``, each with its place: of images that are there, in the folder.

    Args:
        folder: With ``metadata.jsonl``.
        problems: What is wrong with the other rows is added to it.
        text_problem: What is wrong with a row's texts, None for nothing.
    """
    path = folder / METADATA
    inside = folder.resolve()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            row = _parse_row(line)
            reason = row if isinstance(row, str) else _row_problem(row, folder, inside, text_problem(row))
            if reason is not None:
                problems.append(f"{place}: {reason}")
                continue
            assert isinstance(row, dict)
            yield place, row


def _examples(row: dict[str, Any], image: Path, place: str) -> Iterator[Example]:
    if "question" in row:
        yield answered(image, row["question"], _answers(row), place, str(row.get("type") or ""))
        return
    for caption in _captions(row):
        yield Example(image, caption, place)


def _answers(row: dict[str, Any]) -> list[Any]:
    value = row.get("answers", row.get("answer"))
    return value if isinstance(value, list) else [value]


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


def _row_problem(row: dict[str, Any], folder: Path, inside: Path, text_problem: str | None) -> str | None:
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return f"no 'file_name' (columns: {', '.join(map(str, row))})"
    if text_problem is not None:
        return text_problem
    path = folder / name
    if not path.resolve().is_relative_to(inside):
        return f"file_name {name!r} leads out of the folder"
    return image_file_problem(path, name)


def _text_problem(row: dict[str, Any]) -> str | None:
    columns = ", ".join(map(str, row))
    if "question" in row:
        if not isinstance(row["question"], str) or not row["question"].strip():
            return "the question is empty or not text"
        if "answer" not in row and "answers" not in row:
            return f"a question without 'answer' or 'answers' (columns: {columns})"
        texts, label = _answers(row), "an answer"
    elif any(column in row for column in TEXT_COLUMNS):
        texts, label = _captions(row), "the caption"
    else:
        return f"neither 'caption' nor 'text' nor 'question' (columns: {columns})"
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        return f"{label} is empty or not text"
    return None
