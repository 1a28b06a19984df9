"""Caption folders: the ImageFolder convention, and every malformed row with its place."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data.readers.folder import read_image_folder
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.errors import DataError, UsageError
from tests.data_for_tests import all_examples, captioned, numbered, png, targets, write_json, write_pictures


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
    with pytest.raises(DataError, match="no such folder"):
        read_image_folder(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"neither metadata\.jsonl.* nor texts beside images; there are no images"):
        read_image_folder(tmp_path)
    write_rows(tmp_path, [])
    with pytest.raises(DataError, match="it has no rows"):
        read_image_folder(tmp_path)
    write_rows(tmp_path, write_images(tmp_path, 1))
    assert len(read_image_folder(tmp_path).validation) == 1
    with pytest.raises(DataError, match="both need at least one"):
        read_data(tmp_path)
    with pytest.raises(UsageError, match="--held-out"):
        read_image_folder(tmp_path, held_out=0)


def test_what_the_run_could_not_read_is_found_before(tmp_path: Path) -> None:
    """Whole by its header and damaged inside, of formats that are not read, too large: listed, and left out."""
    rows = write_images(tmp_path, 3)
    Image.effect_noise((200, 200), 90).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    for suffix in ("jp2", "tga", "ico", "pcx", "eps", "dds"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"other.{suffix}")
    Image.new("1", (14_600, 14_600)).save(tmp_path / "213 megapixels.png")
    (tmp_path / "photo.jpg").write_text("<html>not found</html>")
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "empty.png").write_bytes(b"")
    bad = sorted(p.name for p in tmp_path.iterdir() if p.name not in ("0.png", "1.png", "2.png", "whole.jpg"))
    assert len(bad) == 11
    write_rows(tmp_path, [*rows, *({"file_name": name, "caption": "x"} for name in bad)])
    with pytest.raises(DataError) as caught:
        read_image_folder(tmp_path)
    for name, problem in zip(bad, caught.value.problems, strict=True):
        assert f"file {name!r} is not a readable image: " in problem
    splits = read_image_folder(tmp_path, skip_bad_rows=True)
    assert [str(problem) for problem in splits.skipped] == [str(problem) for problem in caught.value.problems]
    assert sorted(targets(all_examples(splits))) == ["number 0", "number 1", "number 2"]


def test_a_row_of_an_image_that_many_share_is_listed_each_time(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(png(1)[:30])
    write_rows(tmp_path, [*write_images(tmp_path, 2), *({"file_name": "cut.png", "caption": "x"} for _ in range(3))])
    splits = read_image_folder(tmp_path, skip_bad_rows=True)
    assert [problem.place.rpartition(":")[2] for problem in splits.skipped] == ["3", "4", "5"]


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
        ({"question": "what?", "answer": {"text": "it"}}, "an answer is an object of 1 without 'answer'"),
        ({"question": "what?", "answer": None}, "an answer is empty or not text: None"),
        ({"question": 7, "answer": "it"}, "the question is empty or not text: 7"),
        ({"question": "what?", "answer": "it", "type": ["a"]}, "type is a list of 1, expected text"),
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
    assert "1 training examples left out: their image is also held out" in splits.summary()


# --- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"caption": "c", "question": None, "answer": None}, "c"),
        ({"caption": None, "text": "c"}, "c"),
        ({"caption": [], "text": "c"}, "c"),
        ({"question": "q?", "answer": "x", "answers": None}, "x"),
        ({"question": "q?", "answer": "x", "answers": []}, "x"),
        ({"question": "q?", "answer": None, "multiple_choice_answer": "x"}, "x"),
        ({"question": "q?", "answer": "x", "caption": None, "type": None, "split": None}, "x"),
        ({"question": "q?", "answer": 2}, "2"),
        ({"question": "q?", "answer": 2.5}, "2.5"),
        ({"question": "q?", "answer": True}, "yes"),
        ({"question": "q?", "answers": [{"answer": "x"}, {"answer": "x"}, {"answer": ""}]}, "x"),
        ({"question": "q?", "answer": "x", "text": "what a sign says"}, "x"),
        ({"captions": ["c"]}, "c"),
    ],
)
def test_what_a_row_says(tmp_path: Path, columns: dict[str, object], expected: str) -> None:
    names = numbered(4)
    write_pictures(tmp_path, names)
    write_rows(tmp_path, [{"file_name": name, **columns} for name in names])
    splits = read_data(tmp_path)
    assert set(targets(all_examples(splits))) == {expected}
    assert splits.kind == ("questions" if columns.get("question") else "captions")


@pytest.mark.parametrize("column", ["image", "image_path", "img_name", "filename"])
def test_other_names_of_the_image_s_column(tmp_path: Path, column: str) -> None:
    names = numbered(4)
    write_pictures(tmp_path, names)
    write_rows(tmp_path, [{column: name, "text": name} for name in names])
    assert len(all_examples(read_data(tmp_path))) == 4


def test_columns_by_name(tmp_path: Path) -> None:
    names = numbered(4)
    write_pictures(tmp_path, names)
    write_rows(tmp_path, [{"photo": n, "caption": "no", "alt": f"alt of {n}", "file_name": "gone.png"} for n in names])
    splits = read_data(tmp_path, columns={"image": "photo", "caption": "alt"})
    assert sorted(targets(all_examples(splits))) == [f"alt of {n}" for n in names]
    with pytest.raises(DataError, match="no column 'picture' \\(columns: photo, caption, alt, file_name\\)"):
        read_data(tmp_path, columns={"image": "picture"})
    with pytest.raises(DataError, match="unknown fields picture; known: image, question"):
        read_data(tmp_path, columns={"picture": "photo"})


def test_a_row_with_both_texts_is_no_guess(tmp_path: Path) -> None:
    names = numbered(4)
    write_pictures(tmp_path, names)
    write_rows(tmp_path, [{"file_name": n, "caption": "c", "question": "q?", "answer": "a"} for n in names])
    with pytest.raises(DataError, match=r"4 rows have both a caption and a question.*\n.*--columns question=question"):
        read_data(tmp_path)
    assert read_data(tmp_path, columns={"caption": "caption"}).kind == "captions"
    assert read_data(tmp_path, columns={"question": "question", "answer": "answer"}).kind == "questions"


def test_mixed_rows_name_the_way_out(tmp_path: Path) -> None:
    names = numbered(4)
    write_pictures(tmp_path, names)
    questions = [{"file_name": name, "question": "q?", "answer": "a"} for name in names]
    write_rows(tmp_path, [*captioned(names[:3]), *questions])
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert "it holds captions (3 rows) and questions (4 rows)" in str(caught.value)
    assert "--task" in str(caught.value)
    only = read_data(tmp_path, columns={"caption": "caption"}, skip_bad_rows=True)
    assert (only.kind, len(only.skipped)) == ("captions", 4)


# --- parts ------------------------------------------------------------------------------------------------------------


def test_one_table_above_the_parts(tmp_path: Path) -> None:
    names = [*(f"train/{n}.png" for n in range(6)), "validation/6.png", "validation/7.png", "test/8.png"]
    write_pictures(tmp_path, names)
    write_rows(tmp_path, captioned(names))
    splits = read_data(tmp_path)
    assert [len(part) for part in splits.parts().values()] == [6, 2, 1]
    assert targets(splits.test) == ["caption of test/8.png"]
    assert "6 training and 2 validation examples (and 1 test)" in splits.summary()


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev", "Val"])
@pytest.mark.parametrize("above", [True, False])
def test_names_of_the_folders_of_parts(tmp_path: Path, validation: str, above: bool) -> None:
    parts = {"train": numbered(6), validation: ["6.png", "7.png"], "test": ["8.png"]}
    first = 0
    rows = []
    for part, names in parts.items():
        write_pictures(tmp_path / part, names, first)
        first += len(names)
        rows += captioned(f"{part}/{name}" for name in names)
        if not above:
            write_rows(tmp_path / part, captioned(names))
    if above:
        write_rows(tmp_path, rows)
    assert [len(part) for part in read_data(tmp_path).parts().values()] == [6, 2, 1]


@pytest.mark.parametrize("way", ["images", "a folder between"])
def test_folders_of_parts_further_down(tmp_path: Path, way: str) -> None:
    above = "images" if way == "images" else "data/pictures"
    names = [f"{above}/{part}/{n}.png" for part, few in (("train", 6), ("val", 2), ("test", 1)) for n in range(few)]
    write_pictures(tmp_path, names)
    write_rows(tmp_path, captioned(names))
    assert [len(part) for part in read_data(tmp_path).parts().values()] == [6, 2, 1]


@pytest.mark.parametrize("kind", ["coco", "list", "table"])
def test_a_file_whose_images_are_in_folders_of_parts(tmp_path: Path, kind: str) -> None:
    """Where there are several; a file of one part is all that there is to train on."""
    names = [*(f"train/{n}.png" for n in range(6)), "val/6.png", "val/7.png", "test/8.png"]
    write_pictures(tmp_path / "im", names)

    def read(some: list[str]) -> list[int]:
        if kind == "coco":
            images = [{"id": n, "file_name": name} for n, name in enumerate(some)]
            captions = [{"image_id": n, "caption": name} for n, name in enumerate(some)]
            source = write_json(tmp_path / "c.json", {"images": images, "annotations": captions})
        elif kind == "list":
            source = write_json(tmp_path / "c.json", captioned(some))
        else:
            source = tmp_path / "c.jsonl"
            source.write_text("\n".join(map(json.dumps, captioned(some))))
        return [len(part) for part in read_data(source, images=tmp_path / "im").parts().values()]

    assert read(names) == [6, 2, 1]
    assert read(names[:6])[2] == 0
    assert sum(read([f"test/{n}.png" for n in (8,)] + ["val/6.png", "val/7.png", *names[:1]])) == 4
    write_pictures(tmp_path / "im", [f"test/{n}.png" for n in range(20, 26)], 20)
    held = read([f"test/{n}.png" for n in range(20, 26)])
    assert (sum(held), held[2]) == (6, 0)


def test_lists_written_as_text_are_said(tmp_path: Path) -> None:
    names = numbered(6)
    write_pictures(tmp_path, names)
    lines = [f"{name},what?,\"['red', 'blue']\"" for name in names[:4]] + [f"{name},what?,[EXIT]" for name in names[4:]]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,question,answers", *lines]))
    assert "4 texts look like lists, as \"['red', 'blue']\", and are learnt letter for letter" in "\n".join(
        read_data(tmp_path).notes
    )


def test_where_no_column_is_known_the_option_for_it_is_named(tmp_path: Path) -> None:
    names = numbered(3)
    write_pictures(tmp_path, names)
    (tmp_path / "metadata.csv").write_text("\n".join(["File_Name,Caption", *(f"{name},x" for name in names)]))
    with pytest.raises(DataError, match=r"no 'file_name' \(columns: File_Name, Caption\)") as caught:
        read_data(tmp_path)
    assert "--columns image=" in str(caught.value)
    assert len(all_examples(read_data(tmp_path, columns={"image": "File_Name", "caption": "Caption"}))) == 3


def test_without_a_validation_part_some_are_held_out_and_test_stays_test(tmp_path: Path) -> None:
    names = [*(f"train/{n}.png" for n in range(30)), *(f"test/{n}.png" for n in range(30, 40))]
    write_pictures(tmp_path, names)
    (tmp_path / "train/7.png").write_bytes(png(33))
    write_rows(tmp_path, captioned(names))
    splits = read_data(tmp_path, held_out=0.2)
    assert len(splits.train) + len(splits.validation) == 29
    assert len(splits.test) == 10
    assert all("train/" in target for target in targets([*splits.train, *splits.validation]))
    assert (splits.duplicates, len(splits.validation) > 0) == (1, True)


def test_a_column_that_says_the_part(tmp_path: Path) -> None:
    names = numbered(7)
    write_pictures(tmp_path, names)
    said = ["train", "restval", "TRAIN", "val", "test", "train", "dev"]
    write_rows(tmp_path, [row | {"split": part} for row, part in zip(captioned(names), said, strict=True)])
    assert [len(part) for part in read_data(tmp_path).parts().values()] == [4, 2, 1]
    rows = [row | {"fold": part, "split": "left"} for row, part in zip(captioned(names), said, strict=True)]
    write_rows(tmp_path, rows)
    assert [len(part) for part in read_data(tmp_path, columns={"split": "fold"}).parts().values()] == [4, 2, 1]
    other = read_data(tmp_path)
    assert len(other.test) == 0  # a column of another meaning is none of ours
    assert "the column of parts is not used: it says 'left', no part that is known" in other.notes[0]


@pytest.mark.parametrize("way", ["table", "karpathy"])
def test_a_column_of_parts_counts_more_than_the_folder_of_an_image(tmp_path: Path, way: str) -> None:
    """COCO's pictures in the parts that Karpathy gave them are the usual case."""
    names = [*(f"train/{n}.png" for n in range(6)), *(f"val/{n}.png" for n in range(6, 10))]
    write_pictures(tmp_path, names)
    said = ["train", "test", "train", "val", "train", "train", "test", "val", "restval", "val"]
    if way == "table":
        source = tmp_path
        write_rows(source, [row | {"split": part} for row, part in zip(captioned(names), said, strict=True)])
    else:
        images = [
            {
                "filepath": name.split("/")[0],
                "filename": name.split("/")[1],
                "split": part,
                "sentences": [{"raw": name}],
            }
            for name, part in zip(names, said, strict=True)
        ]
        source = write_json(tmp_path / "dataset.json", {"images": images})
    splits = read_data(source, images=None if way == "table" else tmp_path)
    assert [len(part) for part in splits.parts().values()] == [5, 3, 2]
    note = "the part of 4 rows is what their column says, not the folder of their image: the first is test in a folder"
    assert note in "\n".join(splits.notes)


def test_a_part_that_is_none(tmp_path: Path) -> None:
    names = numbered(5)
    write_pictures(tmp_path, names)
    said = ["train", "train", "val", "left", None]
    write_rows(tmp_path, [row | {"split": part} for row, part in zip(captioned(names), said, strict=True)])
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert "jsonl:4: the split is 'left', expected one of train, " in caught.value.problems[0]
    assert "jsonl:5: no split, as others have" in caught.value.problems[1]
    assert len(read_data(tmp_path, skip_bad_rows=True).skipped) == 2


def test_rows_outside_of_the_parts_are_listed(tmp_path: Path) -> None:
    names = ["cats/0.png", "dogs/1.png", "test/2.png"]
    write_pictures(tmp_path, names)
    write_rows(tmp_path, captioned(names))
    with pytest.raises(DataError) as caught:
        read_data(tmp_path)
    assert len(caught.value.problems) == 2
    assert "in no folder of a part, as others are" in caught.value.problems[0]


@pytest.mark.parametrize("part", ["validation", "test", "train"])
def test_a_single_part_can_be_measured_on(tmp_path: Path, part: str) -> None:
    write_rows(tmp_path / part, write_images(tmp_path / part, 5))
    assert len(all_examples(read_parts(tmp_path))) == 5
    if part != "train":
        with pytest.raises(DataError, match="0 training and"):
            read_data(tmp_path)


def test_tables_that_are_called_after_the_parts(tmp_path: Path) -> None:
    names = numbered(7)
    write_pictures(tmp_path, names)
    lines = [f"{name},{name}" for name in names]
    for file, some in {"train.csv": lines[:4], "val.csv": lines[4:6], "test.csv": lines[6:]}.items():
        (tmp_path / file).write_text("\n".join(["file_name,caption", *some]))
    assert [len(part) for part in read_data(tmp_path).parts().values()] == [4, 2, 1]


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (("metadata.jsonl", "metadata.csv"), "metadata.csv and metadata.jsonl: which is meant?"),
        (("metadata.jsonl", "train/metadata.jsonl"), "tables above the parts and in them"),
        (("train/metadata.jsonl", "train/metadata.csv"), "which is meant?"),
        (("captions.csv",), "there is captions.csv: name the file, --data "),
        (("rows.json",), "there is rows.json: name the file, --data "),
        (("mine/metadata.jsonl",), "mine has one: --data "),
        (("metadata.csv", "metadata.tsv"), "metadata.csv and metadata.tsv: which is meant?"),
        (("metadata.jsonl", "mine/metadata.jsonl"), "tables above the parts and in them"),
        (("metadata.jsonl", "val.csv"), "val.csv: would not be read beside metadata.jsonl; which is meant?"),
        (("metadata.jsonl", "test/captions.csv"), "test/captions.csv: would not be read beside metadata.jsonl"),
        (("train.csv", "train.jsonl"), "train.csv and train.jsonl: which is meant?"),
        (("train.csv", "data/train.csv"), "train.csv and data/train.csv: which is meant?"),
        (("train.csv", "val.json"), "val.json: would not be read beside train.csv; which is meant?"),
        (("train.csv", "val/rows.csv"), "val/rows.csv: would not be read beside train.csv; which is meant?"),
        (("train/metadata.csv", "val/captions.csv"), "val has no metadata file, as the other parts have"),
        (("train/metadata.csv", "val/0.png"), "val has no metadata file, as the other parts have"),
        (("train/metadata.csv", "holdout/metadata.csv"), "holdout is called after no part"),
    ],
)
def test_tables_that_cannot_be_chosen_between(tmp_path: Path, tables: tuple[str, ...], reason: str) -> None:
    for table in tables:
        (tmp_path / table).parent.mkdir(exist_ok=True)
        (tmp_path / table).write_text("")
    with pytest.raises(DataError) as caught:
        read_image_folder(tmp_path)
    assert reason in str(caught.value)


def test_the_formats_of_different_parts_may_differ(tmp_path: Path) -> None:
    names = numbered(5)
    write_pictures(tmp_path, names)
    (tmp_path / "data").mkdir()
    (tmp_path / "train.csv").write_text("\n".join(["file_name,caption", *(f"{name},a" for name in names[:3])]))
    (tmp_path / "data" / "val.tsv").write_text("file_name\tcaption\n" + f"../{names[3]}\tb\n../{names[4]}\tb\n")
    with pytest.raises(DataError, match="leads out of the folder"):
        read_data(tmp_path)
    (tmp_path / "data" / "val.tsv").rename(tmp_path / "val.tsv")
    (tmp_path / "val.tsv").write_text(f"file_name\tcaption\n{names[3]}\tb\n{names[4]}\tb\n")
    assert [len(part) for part in read_data(tmp_path).parts().values()] == [3, 2, 0]


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    write_rows(tmp_path, write_images(tmp_path, 3))
    (tmp_path / "notes.csv").write_text("file_name,caption\n0.png,another\n")
    (tmp_path / "0.txt").write_text("yet another")
    notes = read_data(tmp_path).notes
    assert any("notes.csv" in note for note in notes), notes
    assert any("0.txt" in note and "where there is a table" in note for note in notes), notes


# --- no path of this machine ------------------------------------------------------------------------------------------


def test_records_name_the_folder_and_not_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "home of alice" / "patients"
    write_rows(folder, write_images(folder, 4))
    monkeypatch.chdir(folder)
    for spelling in (folder, ".", f"../{folder.name}", folder / "metadata.jsonl"):
        splits = read_data(spelling)
        said = f"{splits.summary()} {splits.identity()} {splits.describe()} {[e.name for e in all_examples(splits)]}"
        assert "alice" not in said
        assert splits.source in ("patients", "metadata.jsonl")
    (folder / "0.png").unlink()
    with pytest.raises(DataError, match="home of alice"):  # whoever typed the path may see it
        read_data(folder)


@pytest.mark.timeout(30)
def test_texts_that_belong_to_no_image_take_no_time(tmp_path: Path) -> None:
    names = numbered(2)
    write_pictures(tmp_path, names)
    (tmp_path / "labels").mkdir()
    for number in range(20_000):
        (tmp_path / "labels" / f"{number}.txt").touch()
    write_rows(tmp_path, captioned(names))
    assert len(all_examples(read_data(tmp_path))) == 2
