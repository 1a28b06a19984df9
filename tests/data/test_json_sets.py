import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorax_vlm.data.readers.documents import read_coco_captions, read_vqav2
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import DataError


def write_json(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def write_pictures(folder: Path, numbers: range) -> Path:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"COCO_val2014_{number:012d}.png")
    return folder


def vqa_files(folder: Path, images: int = 30) -> dict[str, Any]:
    """Two questions per image, ten annotators each."""
    questions = [
        {"question_id": 10 * image + k, "image_id": image, "question": f"What is {k}?"}
        for image in range(images)
        for k in range(2)
    ]
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "answer_type": "number" if row["question_id"] % 10 else "other",
            "answers": [{"answer": "two" if n < 6 else "three", "answer_id": n} for n in range(10)],
        }
        for row in questions
    ]
    return {
        "questions": write_json(folder / "questions.json", {"questions": questions}),
        "annotations": write_json(folder / "annotations.json", {"annotations": annotations}),
        "images": write_pictures(folder / "images", range(images)),
    }


def change_row(path: Path, key: str, index: int, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document[key][index] = {**document[key][index], **changes}
    path.write_text(json.dumps(document))


def test_vqav2_pairs(tmp_path: Path) -> None:
    splits = read_vqav2(**vqa_files(tmp_path), held_out=0.2)
    assert len(splits.train) + len(splits.validation) == 60
    first = next(iter(splits.train))
    assert first.target == "two"
    assert first.answers == ("two",) * 6 + ("three",) * 4
    assert first.kind in ("number", "other")
    assert first.open_image().size == (8, 8)


def test_all_questions_of_an_image_are_on_one_side(tmp_path: Path) -> None:
    files = vqa_files(tmp_path)
    splits = read_vqav2(**files, held_out=0.3)
    assert not {e.image for e in splits.train} & {e.image for e in splits.validation}
    fewer = read_vqav2(**files, held_out=0.1)
    assert {e.image for e in fewer.validation} < {e.image for e in splits.validation}


@pytest.mark.parametrize(
    ("file", "key", "changes", "reason"),
    [
        ("questions", "questions", {"question": "  "}, r"questions\[3\]: the question is empty"),
        ("questions", "questions", {"image_id": 999}, r"questions\[3\]: no image file for image_id 999"),
        ("questions", "questions", {"question_id": 12345}, "question_id 12345 has no annotation"),
        ("annotations", "annotations", {"answers": [{"answer": ""}]}, "an answer of question_id 11 is empty"),
        ("annotations", "annotations", {"question_id": 0}, r"annotations\[3\]: question_id 0 a second time"),
    ],
)
def test_bad_rows_are_named_and_can_be_left_out(
    tmp_path: Path, file: str, key: str, changes: dict[str, Any], reason: str
) -> None:
    files = vqa_files(tmp_path)
    change_row(files[file], key, 3, **changes)
    with pytest.raises(DataError, match=reason):
        read_vqav2(**files)
    splits = read_vqav2(**files, skip_bad_rows=True)
    assert len(splits.train) + len(splits.validation) == 59
    assert len(splits.skipped) in (1, 2)  # a changed id leaves its question without an answer too
    assert any(re.search(reason, line) for line in splits.skipped)
    assert "left out" in splits.summary()


def test_single_answers_are_enough(tmp_path: Path) -> None:
    files = vqa_files(tmp_path)
    document = json.loads(files["annotations"].read_text())
    for row in document["annotations"]:
        del row["answers"]
        row["multiple_choice_answer"] = "blue"
    files["annotations"].write_text(json.dumps(document))
    assert next(iter(read_vqav2(**files).train)).answers == ("blue",)


def coco_file(folder: Path, images: int = 30) -> tuple[Path, Path]:
    pictures = write_pictures(folder / "images", range(images))
    names = sorted(path.name for path in pictures.iterdir())
    document = {
        "images": [{"id": index, "file_name": name} for index, name in enumerate(names)],
        "annotations": [{"image_id": index // 2, "caption": f"caption {index}"} for index in range(2 * images)],
    }
    return write_json(folder / "captions.json", document), pictures


def test_coco_captions(tmp_path: Path) -> None:
    captions, images = coco_file(tmp_path)
    splits = read_coco_captions(captions, images, held_out=0.2)
    assert len(splits.train) + len(splits.validation) == 60
    assert {e.target for e in [*splits.train, *splits.validation]} == {f"caption {index}" for index in range(60)}
    assert not {e.image for e in splits.train} & {e.image for e in splits.validation}


def test_coco_bad_rows(tmp_path: Path) -> None:
    captions, images = coco_file(tmp_path)
    change_row(captions, "annotations", 0, caption="")
    change_row(captions, "annotations", 7, image_id=500)
    (images / "COCO_val2014_000000000009.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as caught:
        read_coco_captions(captions, images)
    problems = caught.value.problems
    assert len(problems) == 4
    assert "annotations[0]: the caption is empty" in problems[0]
    assert "annotations[7]: no image of id 500" in problems[1]
    assert "annotations[18]" in problems[2]
    assert "not a readable image" in problems[2]


def test_one_door_recognises_them(tmp_path: Path) -> None:
    files = vqa_files(tmp_path)
    splits = read_data(files["questions"], images=files["images"], annotations=files["annotations"])
    assert splits.validation[0].question
    with pytest.raises(DataError, match="Pass their folder: --images"):
        read_data(files["questions"], annotations=files["annotations"])
    with pytest.raises(DataError, match="VQAv2 questions without answers"):
        read_data(files["questions"], images=files["images"])
    captions, images = coco_file(tmp_path)
    assert read_data(captions, images=images).validation[0].target.startswith("caption")
    with pytest.raises(DataError, match="no such image folder"):
        read_data(files["questions"], images=tmp_path / "elsewhere", annotations=files["annotations"])


@pytest.mark.parametrize(("text", "reason"), [("{", "not JSON"), ("[]", "no list"), ('{"images": 3}', "no list")])
def test_files_that_are_something_else(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        read_coco_captions(path, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_coco_captions(tmp_path / "none.json", tmp_path)
