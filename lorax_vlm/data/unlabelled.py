"""Images nobody labelled, for a model to learn from another one's answers."""

import json
from pathlib import Path

from lorax_vlm.data.examples import Example
from lorax_vlm.data.folder import METADATA
from lorax_vlm.data.splitting import image_file_problem
from lorax_vlm.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def read_unlabelled(folder: str | Path) -> list[Example]:
    """The images of a folder, with the questions about them where ``metadata.jsonl`` has any; answers are not read.

    Raises:
        DataError: There is no such folder, no image in it, or a row is malformed; every row is listed.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(str(root), ["no such folder"])
    if not (root / METADATA).is_file():
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError(str(root), [f"it holds no images ({', '.join(IMAGE_SUFFIXES)}) and no {METADATA}"])
        return [Example(path, "", str(path.relative_to(root))) for path in found]
    examples, problems = [], []
    for number, line in enumerate((root / METADATA).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            examples.append(_read_row(root, json.loads(line), f"{METADATA}:{number}"))
        except ValueError as error:
            problems.append(f"{METADATA}:{number}: {error}")
    if problems or not examples:
        raise DataError(str(root), problems or [f"{METADATA} has no rows"])
    return examples


def _read_row(root: Path, row: object, name: str) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("expected an object with file_name")
    question = row.get("question", "")
    if not isinstance(question, str):
        raise ValueError(f"question is {question!r}, expected text")
    problem = image_file_problem(root / row["file_name"], row["file_name"])
    if problem:
        raise ValueError(problem)
    return Example(root / row["file_name"], "", name, question=question)
