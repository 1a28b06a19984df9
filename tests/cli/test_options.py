"""The options that name data, as ``train``, ``doctor`` and ``evaluate`` share them."""

import io
import json
import sys
from pathlib import Path

import pytest

from lorax_vlm.cli.options import list_left_out, read_asked_data
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.settings import left_out_dir
from tests.data_for_tests import captioned, numbered, write_json, write_pictures, write_rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write_pictures(folder, numbered(20))
    rows = [{**row, "clip": number // 4} for number, row in enumerate(captioned(numbered(20)))]
    return write_rows(folder, rows)


def test_every_option_reaches_the_reader(photos: Path, tmp_path: Path) -> None:
    asked = read_asked_data(str(photos), columns="caption=file_name", held_out=0.4, group_by="clip")
    assert asked == read_data(photos, columns={"caption": "file_name"}, held_out=0.4, group_by="clip")
    assert asked is not None
    sides = [{int(example.target.split(".")[0]) // 4 for example in side} for side in (asked.train, asked.validation)]
    assert not sides[0] & sides[1]
    document = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(numbered(20))],
        "annotations": [{"image_id": n, "caption": str(n)} for n in range(20)],
    }
    coco = write_json(tmp_path / "coco.json", document)
    assert read_asked_data(str(coco), photos) == read_data(coco, images=photos)
    questions = write_json(
        tmp_path / "q.json", {"questions": [{"question_id": n, "image_id": n, "question": "q?"} for n in range(20)]}
    )
    answers = write_json(tmp_path / "a.json", {"annotations": [{"question_id": n, "answers": "x"} for n in range(20)]})
    assert read_asked_data(str(questions), photos, answers) == read_data(questions, images=photos, annotations=answers)


def test_without_data_nothing_is_read_and_nothing_may_be_said_of_it(tmp_path: Path) -> None:
    assert read_asked_data() is None
    for options in (
        {"images": tmp_path},
        {"annotations": tmp_path},
        {"columns": "image=a"},
        {"group_by": "clip"},
        {"streaming": True},
    ):
        name = next(iter(options)).replace("_", "-")
        with pytest.raises(UsageError, match=f"--{name} says something about --data, which is not given"):
            read_asked_data(None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", ["image", "image=", "=a", "image=a,,b", "image a"])
def test_columns_that_are_none(photos: Path, columns: str) -> None:
    with pytest.raises(UsageError, match="--columns must look like image=img,question=q,answer=a"):
        read_asked_data(str(photos), columns=columns)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_shares_that_are_none(photos: Path, share: float) -> None:
    with pytest.raises(UsageError, match="--held-out"):
        read_asked_data(str(photos), held_out=share)


@pytest.mark.parametrize("parts", [["validation"], ["test"], ["train"], ["train", "test"]])
def test_to_evaluate_any_part_is_enough(tmp_path: Path, parts: list[str]) -> None:
    for number, part in enumerate(parts):
        write_pictures(tmp_path / part, ["0.png"], first=number)
        write_rows(tmp_path / part, captioned(["0.png"]))
    with pytest.raises(DataError, match="both need at least one"):
        read_asked_data(str(tmp_path))
    splits = read_asked_data(str(tmp_path), purpose="evaluate")
    assert splits is not None
    assert len(list(splits.select("all"))) == len(parts)


def test_rows_that_are_left_out_are_written_to_a_file(photos: Path, isolated_home: Path) -> None:
    with (photos / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "gone.png", "caption": "a"}\n')
    with pytest.raises(DataError, match=r"gone\.png"):
        read_asked_data(str(photos), purpose="evaluate")
    read = read_asked_data(str(photos), skip_bad_rows=True, purpose="evaluate")
    assert read is not None
    splits = list_left_out(read)
    (target,) = (isolated_home / "left_out").glob("*.jsonl")
    assert splits.notes == (f"the rows that are left out are listed in {target}",)
    (row,) = [json.loads(line) for line in target.read_text().splitlines()]
    assert row["place"].endswith("metadata.jsonl:21")
    assert (row["field"], row["value"]) == ("file_name", "'gone.png'")


def test_a_terminal_shows_how_far_it_is(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        read_asked_data(str(photos))
        assert ("Looking at images" in stream.getvalue()) == shown


def test_evaluating_lists_them_at_home(photos: Path) -> None:
    with (photos / "metadata.jsonl").open("a") as file:
        file.write("nonsense\n")
    read = read_asked_data(str(photos), skip_bad_rows=True)
    assert read is not None
    assert not left_out_dir().exists()
    splits = list_left_out(read)
    assert (left_out_dir() / "photos.jsonl").read_text().count("\n") == 1
    assert str(left_out_dir() / "photos.jsonl") in splits.notes[-1]
