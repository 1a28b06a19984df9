"""Images without labels: a folder of them, or rows with questions; answers are not read."""

import json
from pathlib import Path

import pytest

from lorax_vlm.data.readers.unlabelled import read_unlabelled
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import DataError


@pytest.fixture
def folder(scenes: list[Scene], tmp_path: Path) -> Path:
    target = tmp_path / "photos"
    target.mkdir()
    for index in range(3):
        scenes[index].image.save(target / f"{index}.png")
    return target


def write_rows(folder: Path, *rows: object) -> Path:
    (folder / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder


def test_without_rows_every_image_is_taken(folder: Path, scenes: list[Scene]) -> None:
    (folder / "notes.txt").write_text("no image")
    found = read_unlabelled(folder)
    assert [(example.name, example.target, example.question) for example in found] == [
        ("0.png", "", ""),
        ("1.png", "", ""),
        ("2.png", "", ""),
    ]
    assert found[0].open_image().tobytes() == scenes[0].image.tobytes()


def test_what_other_programs_leave_behind_is_no_image(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a Mac, thumbnails and half a download leave beside the images; an empty file is said."""
    for junk in ("._0.png", "__MACOSX/._1.png", "__MACOSX/1.png", ".thumbs/0.png", "@eaDir/0.png", ".DS_Store"):
        (folder / junk).parent.mkdir(exist_ok=True)
        (folder / junk).write_bytes(b"\0\5\x16\7Mac OS X")
    (folder / "zero.png").write_bytes(b"")
    found = read_unlabelled(folder)
    assert [example.name for example in found] == ["0.png", "1.png", "2.png"]
    assert "zero.png" in caplog.text


def test_questions_are_read_and_answers_are_not(folder: Path) -> None:
    write_rows(
        folder, {"file_name": "1.png", "question": "How many?", "answer": "3"}, {"file_name": "0.png", "caption": "x"}
    )
    found = read_unlabelled(folder)
    assert [(example.question, example.target, example.answers) for example in found] == [
        ("How many?", "", ()),
        ("", "", ()),
    ]


@pytest.mark.parametrize(
    "name", ["metadata.parquet", "metadata.csv", "train/metadata.jsonl", "test.csv", "data/train.tsv"]
)
def test_questions_of_any_table_that_a_folder_may_have(folder: Path, name: str) -> None:
    table = folder / name
    table.parent.mkdir(exist_ok=True)
    if table.parent != folder:
        for image in folder.glob("*.png"):
            image.rename(table.parent / image.name)
    rows = [{"file_name": f"{n}.png", "question": f"what is {n}?"} for n in range(3)]
    if table.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(table)
    elif table.suffix == ".jsonl":
        table.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = "\t" if table.suffix == ".tsv" else ","
        table.write_text("\n".join([f"file_name{mark}question", *(mark.join(row.values()) for row in rows)]))
    found = read_unlabelled(folder)
    assert [example.question for example in found] == [row["question"] for row in rows]
    assert all(example.digest and example.name.startswith(name) for example in found)


def test_images_inside_of_a_table(folder: Path, scenes: list[Scene]) -> None:
    from datasets import Dataset

    rows = [{"image": (folder / f"{n}.png").read_bytes(), "question": "what?"} for n in range(3)]
    Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    found = read_unlabelled(folder)
    assert [example.open_image().tobytes() for example in found] == [scenes[n].image.tobytes() for n in range(3)]


def test_two_tables_for_one_folder(folder: Path) -> None:
    write_rows(folder, {"file_name": "0.png", "question": "a?"})
    (folder / "metadata.csv").write_text("file_name,question\n0.png,b?")
    with pytest.raises(DataError, match=r"metadata.csv and metadata.jsonl: which is meant"):
        read_unlabelled(folder)


def test_every_bad_row_is_listed(folder: Path, scenes: list[Scene]) -> None:
    scenes[0].image.save(folder.parent / "outside.png")
    write_rows(
        folder, "{", [], {"file_name": "9.png"}, {"file_name": "0.png", "question": 5}, {"file_name": "../outside.png"}
    )
    with pytest.raises(DataError) as caught:
        read_unlabelled(folder)
    reasons = ("not JSON", "expected an object", "does not exist", "question is 5", "leads out of the folder")
    assert len(caught.value.problems) == len(reasons)
    for number, (problem, reason) in enumerate(zip(caught.value.problems, reasons, strict=True), 1):
        assert f"metadata.jsonl:{number}: " in problem
        assert reason in problem


def test_nothing_to_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for wrong, reason in ((tmp_path / "missing", "no such folder"), (tmp_path / "empty", "no images")):
        with pytest.raises(DataError, match=reason):
            read_unlabelled(wrong)
    with pytest.raises(DataError, match="has no rows"):
        read_unlabelled(write_rows(folder, ""))
