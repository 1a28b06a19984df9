"""VQAv2's pairs of files: questions, and annotations that answer them by ``question_id``. No torch."""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lorax_vlm.data.image_facts import Stored
from lorax_vlm.data.readers.gathering import Gathering
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import Spot
from lorax_vlm.data.readers.values import add_differing, answers_in, id_text, is_absent
from lorax_vlm.errors import DataError, MalformedRow
from lorax_vlm.foreign import quoted

VQA_HINT = (
    "VQAv2 comes as two files: questions with question_id, image_id and question; annotations with question_id and "
    "answers, or multiple_choice_answer."
)
_QUESTION_NAMES = ("question_id", "image_id", "question")
_NOT_READ = ("caption", "captions", "text", "answer", "multiple_choice_answer")
_ById = dict[str, list[dict[str, Any]]]


def take_pairs(
    gathering: Gathering, questions: dict[str, Any], annotations: Any, files: ImageFiles, paths: tuple[Path, Path]
) -> None:
    """Give every question with its annotation to a gathering.

    Raises:
        DataError: The second file has no annotations.
    """
    if not isinstance(annotations, dict) or not isinstance(annotations.get("annotations"), list):
        raise DataError(str(paths[1]), ["it has no list 'annotations'"], VQA_HINT)
    annotated = _by_question(gathering, annotations["annotations"], f"{paths[1]}: annotations", paths[1].name)
    numbers = [id_text(row.get("question_id")) if isinstance(row, dict) else None for row in questions["questions"]]
    asked: _ById = defaultdict(list)
    for number, row in zip(numbers, questions["questions"], strict=True):
        if number is not None:
            add_differing(row, asked[number])
    taken = set()
    for index, (number, row) in enumerate(zip(numbers, questions["questions"], strict=True)):
        place = f"questions[{index}]"
        shown = f" (question_id {number})" if number is not None else ""
        spot = Spot(f"{paths[0]}: {place}", f"{paths[0].name}: {place}{shown}")
        try:
            if number is not None and len(asked[number]) > 1:  # whose answer would it be?
                raise _twice(number)
            pair, about = _pair(row, number, annotated)
        except MalformedRow as wrong:
            gathering.refuse(spot, wrong)
        else:
            if number not in taken:  # and no second time where it says the same
                gathering.take(spot, pair, partial(_file_of, files=files, about=about))
            taken.add(number)


def _by_question(gathering: Gathering, rows: list[Any], place: str, name: str) -> _ById:
    """Annotations by question, those that differ."""
    found: _ById = defaultdict(list)
    for index, row in enumerate(rows):
        number = id_text(row.get("question_id")) if isinstance(row, dict) else None
        spot = Spot(f"{place}[{index}]", f"{name}: annotations[{index}]")
        if number is None:
            value = quoted(row.get("question_id") if isinstance(row, dict) else row)
            missing = not isinstance(row, dict) or "question_id" not in row
            reason = "no 'question_id'" if missing else f"the question_id is {value}"
            gathering.refuse(spot, MalformedRow(reason, field="question_id", value=value, wanted="an id"))
        elif add_differing(row, found[number]):
            gathering.refuse(spot, _twice(number))
    return found


def _twice(number: str) -> MalformedRow:
    reason = f"question_id {number} a second time, with other values"
    return MalformedRow(reason, field="question_id", value=number, wanted="an id of its own")


def _pair(row: Any, number: str | None, annotated: Mapping[str, list[dict[str, Any]]]) -> tuple[dict[str, Any], Any]:
    """A question and its answers as one row, and the image that the annotation is about, if it says.

    Raises:
        MalformedRow: They do not belong together.
    """
    if not isinstance(row, dict) or not set(_QUESTION_NAMES) <= row.keys():
        raise MalformedRow("question_id, image_id or question is missing", value=quoted(row), wanted="all three")
    if number is None:
        value = quoted(row["question_id"])
        raise MalformedRow(f"the question_id is {value}", field="question_id", value=value, wanted="an id")
    annotation = _annotation(row, number, annotated)
    said = annotation.get("answers")
    if is_absent(said):
        said = annotation.get("multiple_choice_answer", annotation.get("answer"))
    answers = answers_in(said, f"an answer of question_id {number}")
    pair = {key: value for key, value in {**annotation, **row}.items() if key not in _NOT_READ}
    return {**pair, "question_id": number, "answers": answers}, annotation.get("image_id")


def _annotation(row: dict[str, Any], number: str, annotated: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    known = annotated.get(number, [])
    if not known:
        raise MalformedRow(
            f"question_id {number} has no annotation", field="question_id", value=number, wanted="an annotation"
        )
    if len(known) == 1:
        return known[0]
    image = id_text(row["image_id"])
    fitting = [annotation for annotation in known if id_text(annotation.get("image_id")) == image]
    if len(fitting) != 1:
        reason = f"question_id {number} has {len(known)} annotations that differ"
        raise MalformedRow(reason, field="question_id", value=number, wanted="one annotation")
    return fitting[0]


def _file_of(row: Mapping[str, Any], files: ImageFiles, about: Any) -> Stored:
    image = files.of_id(row["image_id"])
    if about is not None and id_text(about) != id_text(row["image_id"]):
        value = quoted(about)
        reason = f"the question is about image_id {quoted(row['image_id'])}, its annotation about {value}"
        raise MalformedRow(reason, field="image_id", value=value, wanted="the same image")
    return image
