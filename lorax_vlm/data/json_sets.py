"""The published JSON files: VQAv2's pairs of questions and annotations, and COCO's captions.

Images are looked up in one folder, by COCO's naming (``COCO_val2014_000000000042.jpg``, ``000000000042.jpg``) or, for
captions, by the file name in the JSON.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.splitting import hold_out, image_file_problem, make_splits
from lorax_vlm.errors import DataError

_IMAGE_NUMBER = re.compile(r"(\d+)\.(?:jpg|jpeg|png|webp)", re.IGNORECASE)
_VQA_HINT = (
    "VQAv2 comes as two files: questions with question_id, image_id and question; annotations with question_id and "
    "answers, or multiple_choice_answer. Leave bad rows out with --skip-bad-rows."
)
_COCO_HINT = "COCO captions have images (id, file_name) and annotations (image_id, caption)."


def read_vqav2(
    questions: str | Path,
    annotations: str | Path,
    images: str | Path,
    *,
    validation_share: float = 0.05,
    skip_bad_rows: bool = False,
) -> DataSplits:
    """Read a pair of VQAv2 files; a share of the images is held out.

    Raises:
        DataError: A file is no such JSON, or rows are malformed; every row is listed.
    """
    question_rows = _require_list(*_read_json(questions, _VQA_HINT), "questions", _VQA_HINT)
    annotation_rows = _require_list(*_read_json(annotations, _VQA_HINT), "annotations", _VQA_HINT)
    by_number = _number_images(Path(images).expanduser())
    problems: list[str] = []
    annotated: dict[Any, dict[str, Any]] = {}
    for index, row in enumerate(annotation_rows):
        if not isinstance(row, dict) or "question_id" not in row:
            problems.append(f"{annotations}: annotations[{index}]: no 'question_id'")
        elif row["question_id"] in annotated:
            problems.append(f"{annotations}: annotations[{index}]: question_id {row['question_id']} a second time")
        else:
            annotated[row["question_id"]] = row
    examples = []
    for index, row in enumerate(question_rows):
        place = f"{questions}: questions[{index}]"
        found = _vqa_example(row, annotated, by_number, place)
        if isinstance(found, str):
            problems.append(f"{place}: {found}")
        else:
            examples.append(found)
    train, validation = hold_out(examples, lambda example: str(example.image), validation_share)
    return make_splits(train, validation, str(questions), problems, skip_bad_rows=skip_bad_rows, hint=_VQA_HINT)


def _vqa_example(
    row: Any, annotated: dict[Any, dict[str, Any]], by_number: dict[int, Path], place: str
) -> Example | str:
    if not isinstance(row, dict) or not {"question_id", "image_id", "question"} <= set(row):
        return "question_id, image_id or question is missing"
    name = f"{place} (question_id {row['question_id']})"
    if not isinstance(row["question"], str) or not row["question"].strip():
        return "the question is empty or not text"
    annotation = annotated.get(row["question_id"])
    if annotation is None:
        return f"question_id {row['question_id']} has no annotation"
    given = annotation.get("answers") or [{"answer": annotation.get("multiple_choice_answer")}]
    answers: list[Any] = [item.get("answer") if isinstance(item, dict) else item for item in given]
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return f"an answer of question_id {row['question_id']} is empty or not text"
    path = by_number.get(row["image_id"]) if isinstance(row["image_id"], int) else None
    if path is None:
        return f"no image file for image_id {row['image_id']}"
    kind = str(annotation.get("answer_type") or annotation.get("question_type") or "")
    return answered(path, row["question"], answers, name, kind)


def read_coco_captions(
    captions: str | Path,
    images: str | Path,
    *,
    validation_share: float = 0.05,
    skip_bad_rows: bool = False,
) -> DataSplits:
    """Read a COCO captions file; a share of the images is held out.

    Raises:
        DataError: The file is no such JSON, or rows are malformed; every row is listed.
    """
    folder = Path(images).expanduser()
    path, document = _read_json(captions, _COCO_HINT)
    if isinstance(document, dict) and "questions" in document:
        raise DataError(str(path), ["these are VQAv2 questions without answers"], "Pass the answers: --annotations.")
    names = {row["id"]: row["file_name"] for row in _require_list(path, document, "images", _COCO_HINT)}
    problems: list[str] = []
    examples = []
    checked: dict[str, str | None] = {}
    for index, row in enumerate(_require_list(path, document, "annotations", _COCO_HINT)):
        place = f"{captions}: annotations[{index}]"
        name = names.get(row.get("image_id"))
        text = row.get("caption")
        if name is None:
            problems.append(f"{place}: no image of id {row.get('image_id')}")
        elif not isinstance(text, str) or not text.strip():
            problems.append(f"{place}: the caption is empty or not text")
        else:
            if name not in checked:
                checked[name] = image_file_problem(folder / name, name)
            if checked[name] is not None:
                problems.append(f"{place}: {checked[name]}")
            else:
                examples.append(Example(folder / name, text, place))
    train, validation = hold_out(examples, lambda example: str(example.image), validation_share)
    return make_splits(train, validation, str(captions), problems, skip_bad_rows=skip_bad_rows, hint=_COCO_HINT)


def _read_json(source: str | Path, hint: str) -> tuple[Path, Any]:
    path = Path(source).expanduser()
    try:
        return path, json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(str(path), [f"it cannot be read: {error.strerror or error}"], hint) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), [f"it is not JSON: {error}"], hint) from error


def _require_list(path: Path, document: Any, key: str, hint: str) -> list[Any]:
    if not isinstance(document, dict) or not isinstance(document.get(key), list):
        raise DataError(str(path), [f"it has no list {key!r}"], hint)
    return list(document[key])


def _number_images(folder: Path) -> dict[int, Path]:
    """Image files by the last number in their name.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(str(folder), ["there is no such image folder"], "Pass the folder of the images: --images.")
    return {int(match[1]): path for path, match in _matching(folder)}


def _matching(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in sorted(folder.iterdir()):
        match = re.search(_IMAGE_NUMBER.pattern + "$", path.name, re.IGNORECASE)
        if match:
            yield path, match
