"""Images nobody labelled, for a model to learn from another one's answers."""

from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import Example
from lorax_vlm.data.folder import METADATA, read_rows
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
    problems: list[str] = []
    examples = [
        Example(root / row["file_name"], "", place, question=row.get("question", ""))
        for place, row in read_rows(root, problems, _question_problem)
    ]
    if problems or not examples:
        raise DataError(str(root), problems or [f"{METADATA} has no rows"])
    return examples


def _question_problem(row: dict[str, Any]) -> str | None:
    question = row.get("question", "")
    return None if isinstance(question, str) else f"question is {question!r}, expected text"
