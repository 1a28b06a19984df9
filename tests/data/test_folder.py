"""Caption folders: the ImageFolder convention, and every malformed row with its place."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data.folder import read_image_folder
from lorax_vlm.errors import DataError, ImageError


def write_rows(folder: Path, rows: list[object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_images(folder: Path, count: int, prefix: str = "") -> list[dict[str, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        Image.new("RGB", (8, 8), (index, len(folder.name), 0)).save(folder / f"{prefix}{index}.png")
        rows.append({"file_name": f"{prefix}{index}.png", "caption": f"number {index}"})
    return rows


def test_captions_and_a_stable_validation_split(tmp_path: Path) -> None:
    write_rows(tmp_path, write_images(tmp_path, 60))
    splits, again = read_image_folder(tmp_path), read_image_folder(tmp_path)
    assert splits == again
    assert len(splits.train) + len(splits.validation) == 60
    assert 1 <= len(splits.validation) <= 15
    first = splits.train[0]
    assert first.open_image().size == (8, 8)
    assert first.name.endswith(f"metadata.jsonl:{int(first.target.split()[1]) + 1}")


def test_adding_images_moves_none_between_the_sides(tmp_path: Path) -> None:
    rows = write_images(tmp_path, 60)
    write_rows(tmp_path, rows[:40])
    before = {e.image for e in read_image_folder(tmp_path).validation}
    write_rows(tmp_path, rows)
    after = {e.image for e in read_image_folder(tmp_path).validation}
    assert before <= after


def test_all_captions_of_an_image_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"file_name": r["file_name"], "text": ["one", "two", "three"]} for r in write_images(tmp_path, 30)]
    write_rows(tmp_path, rows)
    splits = read_image_folder(tmp_path)
    assert len(splits.train) + len(splits.validation) == 90
    assert not {e.image for e in splits.train} & {e.image for e in splits.validation}


def test_split_folders(tmp_path: Path) -> None:
    write_rows(tmp_path / "train", write_images(tmp_path / "train", 3))
    write_rows(tmp_path / "validation", write_images(tmp_path / "validation", 2))
    splits = read_image_folder(tmp_path)
    assert (len(splits.train), len(splits.validation)) == (3, 2)


@pytest.mark.parametrize("count", [2, 3])
def test_a_tiny_folder_still_has_both_sides(tmp_path: Path, count: int) -> None:
    write_rows(tmp_path, write_images(tmp_path, count))
    splits = read_image_folder(tmp_path)
    assert splits.train
    assert splits.validation


BAD_ROWS = [
    ('{"file_name": "0.png", "caption": "cut', "not JSON"),
    ("[1, 2]", "expected an object, found list"),
    ({"caption": "no file"}, "no 'file_name'"),
    ({"file_name": "0.png"}, "neither 'caption' nor 'text'"),
    ({"file_name": "0.png", "caption": ""}, "empty or not text"),
    ({"file_name": "0.png", "caption": 7}, "empty or not text"),
    ({"file_name": "0.png", "caption": []}, "empty or not text"),
    ({"file_name": "gone.png", "caption": "x"}, "'gone.png' does not exist"),
    ({"file_name": "../secret.png", "caption": "x"}, "leads out of the folder"),
    ({"file_name": "/etc/passwd", "caption": "x"}, "leads out of the folder"),
    ({"file_name": "notes.txt", "caption": "x"}, "not a readable image"),
]


def test_every_malformed_row_is_reported_with_file_and_line(tmp_path: Path) -> None:
    good = write_images(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("not an image")
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "secret.png")
    write_rows(tmp_path, [*good, *(row for row, _ in BAD_ROWS)])
    with pytest.raises(DataError) as caught:
        read_image_folder(tmp_path)
    assert len(caught.value.problems) == len(BAD_ROWS)
    for line, ((_, reason), problem) in enumerate(zip(BAD_ROWS, caught.value.problems, strict=True), start=5):
        assert problem.startswith(f"{tmp_path / 'metadata.jsonl'}:{line}: ")
        assert reason in problem
    assert "--skip-bad-rows" in str(caught.value)

    splits = read_image_folder(tmp_path, skip_bad_rows=True)
    assert len(splits.train) + len(splits.validation) == 4
    assert len(splits.skipped) == len(BAD_ROWS)
    assert "11 malformed rows left out" in splits.summary()


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    write_rows(tmp_path, write_images(tmp_path, 3))
    with (tmp_path / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": "\xff.png"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl:4: not UTF-8"):
        read_image_folder(tmp_path)


def test_no_metadata_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither metadata\.jsonl"):
        read_image_folder(tmp_path / "nothing")
    write_rows(tmp_path, write_images(tmp_path, 1))
    with pytest.raises(DataError, match="both need at least one"):
        read_image_folder(tmp_path)
    with pytest.raises(ValueError, match="validation_share"):
        read_image_folder(tmp_path, validation_share=0)


def test_an_image_damaged_inside_is_named_when_it_is_read(tmp_path: Path) -> None:
    rows = write_images(tmp_path, 3)
    noise = Image.effect_noise((200, 200), 90)
    noise.save(tmp_path / "0.jpg")
    (tmp_path / "0.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:3000])
    write_rows(tmp_path, [{"file_name": "0.jpg", "caption": "x"}, *rows])
    examples = [*read_image_folder(tmp_path).train, *read_image_folder(tmp_path).validation]
    with pytest.raises(ImageError, match=r"0\.jpg.*truncated"):
        next(e for e in examples if str(e.image).endswith("0.jpg")).open_image()


def test_questions_with_one_or_several_answers(tmp_path: Path) -> None:
    rows = write_images(tmp_path, 30)
    for index, row in enumerate(rows):
        del row["caption"]
        row["question"] = f"Question {index}?"
        if index % 2:
            row["answer"] = "yes"
        else:
            row["answers"] = ["no", "no", "yes"]
            row["type"] = "existence"
    write_rows(tmp_path, rows)
    splits = read_image_folder(tmp_path)
    examples = {e.question: e for e in [*splits.train, *splits.validation]}
    assert len(examples) == 30
    assert examples["Question 1?"].answers == ("yes",)
    assert examples["Question 2?"].answers == ("no", "no", "yes")
    assert (examples["Question 2?"].target, examples["Question 2?"].kind) == ("no", "existence")
    prompted = splits.with_prompt("Question: {question} Answer:")
    assert prompted.train[0].prompt == f"Question: {prompted.train[0].question} Answer:"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": ""}, "the question is empty"),
        ({"question": "what?"}, "a question without 'answer' or 'answers'"),
        ({"question": "what?", "answer": 3}, "an answer is empty or not text"),
        ({"question": "what?", "answers": []}, "an answer is empty or not text"),
        ({"question": ["what?"], "answer": "it"}, "the question is empty or not text"),
    ],
)
def test_malformed_questions(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    rows = write_images(tmp_path, 3)
    write_rows(tmp_path, [*rows, {"file_name": "0.png", **row}])
    with pytest.raises(DataError) as caught:
        read_image_folder(tmp_path)
    assert f"metadata.jsonl:4: {reason}" in caught.value.problems[0]


def test_images_of_the_validation_examples_leave_training(tmp_path: Path) -> None:
    write_rows(tmp_path / "train", write_images(tmp_path / "train", 4))
    held_out = write_images(tmp_path / "validation", 2)
    (tmp_path / "validation" / "0.png").write_bytes((tmp_path / "train" / "3.png").read_bytes())
    write_rows(tmp_path / "validation", held_out)
    splits = read_image_folder(tmp_path)
    assert [e.target for e in splits.train] == ["number 0", "number 1", "number 2"]
    assert splits.duplicates == 1
    assert "1 of validation images left out of training" in splits.summary()
