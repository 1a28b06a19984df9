"""Tables of questions: each row is answered, whatever stands beside it is kept, and another run goes on."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from PIL import Image as Pictures

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.counts import BulkReport
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.order import bulk_order
from lorax_vlm.bulk.tables import _value
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.errors import DataError, PathError, UsageError
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.runtime.fake import FakeEngine


@contextmanager
def answering(engine: FakeEngine) -> Iterator[FakeEngine]:
    yield engine


def run(table: Path, out: Path, **options: Any) -> tuple[BulkReport, FakeEngine]:
    def say(request: Any) -> str:
        picture, question = request.single()
        return f"{picture.getpixel((0, 0))[0]} {question}"

    engine = FakeEngine(say)
    entry, store = get_model_entry("blip2-opt-mini"), AdapterStore(out.parent / "store")
    order = bulk_order(entry, store, table, (), out=out, **{"answers": True, **options})
    return BulkJob(order, LocalAnswers(lambda: answering(engine), Pace(3))).run(), engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for red in range(4):
        Pictures.new("RGB", (4, 4), (red, 0, 0)).save(tmp_path / f"{red}.png")
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_row_is_answered_once_and_kept(folder: Path) -> None:
    rows = [{"file_name": f"{n % 4}.png", "question": f"what {n // 2}?", "id": n} for n in range(8)]
    rows += [rows[0], {"file_name": "gone.png", "question": "what?"}, {"file_name": "1.png", "question": " "}]
    table, out = write(folder / "rows.jsonl", rows), folder / "answers.jsonl"
    report, engine = run(table, out)
    assert (report.texts, report.failed) == (9, 2)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in found] == [f"{n % 4} what {n // 2}?" for n in [*range(8), 0]]
    assert [row["id"] for row in found] == [*range(8), 0]
    with (folder / "answers.jsonl.failed.csv").open() as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["rows.jsonl:10", "rows.jsonl:11"]
    rows.insert(0, {"file_name": "3.png", "question": "new?"})
    rows[3]["question"] = "changed?"
    write(table, rows)
    report, engine = run(table, out)
    assert [request.single()[1] for request in engine.asked] == ["new?", "changed?"]
    assert len(out.read_text().splitlines()) == 10
    assert run(table, out)[0].texts == 0


def test_right_answers_are_not_written_over(folder: Path) -> None:
    table = write(folder / "rows.jsonl", [{"file_name": "1.png", "question": "what?", "answer": "right"}])
    run(table, folder / "out.csv")
    with (folder / "out.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["answer"], row["answer_base"]) == ("right", "1 what?")


def test_images_inside_a_table(folder: Path) -> None:
    files = [str(folder / f"{red}.png") for red in range(4)]
    rows = Dataset.from_dict({"image": files, "question": ["what?"] * 4}).cast_column("image", Image())
    rows.to_parquet(folder / "rows.parquet")
    report, _ = run(folder / "rows.parquet", folder / "out.parquet")
    assert report.texts == 4
    answers = Dataset.from_parquet(str(folder / "out.parquet"))["answer"]
    assert list(answers) == [f"{red} what?" for red in range(4)]


def test_what_is_no_table(folder: Path) -> None:
    table = write(folder / "rows.jsonl", [{"file_name": "1.png", "question": "what?"}])
    with pytest.raises(UsageError, match=r"out must be a folder or a file, \.jsonl, \.csv, \.parquet"):
        run(table, folder / "out.txt")
    with pytest.raises(UsageError, match="is the table that is read"):
        run(table, table)
    with pytest.raises(UsageError, match="answers is for rows"):
        run(folder / "1.png", folder / "out.csv")
    with pytest.raises(DataError, match="it has no rows"):
        run(write(folder / "none.jsonl", []), folder / "out.csv")


def captions(source: Any, out: Path | None = None, **wishes: Any) -> list[dict[str, Any]]:
    """The rows of the table that a job over a source writes, whose captions are the red of each image."""
    engine = FakeEngine(lambda request: f"red {request.single()[0].getpixel((0, 0))[0]}")
    store = AdapterStore("store")
    order = bulk_order(get_model_entry("blip2-opt-mini"), store, source, (), out=out, write=["jsonl"], **wishes)
    BulkJob(order, LocalAnswers(lambda: answering(engine), Pace(3))).run()
    return [json.loads(line) for line in order.table("jsonl").read_text().splitlines()]


def test_images_of_a_coco_file_are_captioned_whether_or_not_they_have_captions(folder: Path) -> None:
    images = [{"id": 10 + red, "file_name": f"{red}.png", "license": 3} for red in range(4)]
    images.append({"id": 99, "coco_url": "http://images.cocodataset.org/train2017/2.png"})
    coco = folder / "captions_val.json"
    coco.write_text(json.dumps({"images": images, "annotations": [{"image_id": 10, "caption": "a cat"}]}))
    found = captions(coco, folder / "out", images=folder)
    assert [(row["id"], row["caption"]) for row in found] == [
        (10, "red 0"),
        (11, "red 1"),
        (12, "red 2"),
        (13, "red 3"),
        (99, "red 2"),
    ]
    assert found[0]["license"] == 3
    assert (folder / "out" / "captions_val.captions.jsonl").is_file()


def test_vqav2_questions_are_answered_without_their_answers(folder: Path) -> None:
    asked = [{"question_id": n, "image_id": n % 4, "question": f"what {n}?"} for n in range(6)]
    questions = folder / "questions.json"
    questions.write_text(json.dumps({"task_type": "Open-Ended", "questions": asked}))
    report, _ = run(questions, folder / "answers.jsonl")
    found = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert report.texts == 6
    assert [(row["question_id"], row["answer"]) for row in found] == [(n, f"{n % 4} what {n}?") for n in range(6)]


def test_a_data_set_of_several_splits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, reds in (("train", (0, 1)), ("test", (2, 3))):
        inside = [{"bytes": (folder / f"{red}.png").read_bytes(), "path": None} for red in reds]
        rows = Dataset.from_dict({"image": inside, "day": [1, 2]})
        (folder / "set" / "data").mkdir(parents=True, exist_ok=True)
        rows.cast_column("image", Image()).to_parquet(folder / "set" / "data" / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(folder)
    assert [row["caption"] for row in captions("hub:set")] == ["red 0", "red 1", "red 2", "red 3"]
    assert Path("set.captions.jsonl").is_file()
    found = captions("hub:set", split="test")
    assert [(row["caption"], row["day"]) for row in found] == [("red 2", 1), ("red 3", 2)]
    assert Path("set-test.captions.jsonl").is_file()
    with pytest.raises(DataError, match="no split 'val'; its splits are"):
        captions("hub:set", split="val")


def test_a_list_of_files_is_captioned_in_its_order_and_named_from_their_common_folder(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("2.jpg", "deep/5.png", "deep/er/6.png"):
        Pictures.new("RGB", (4, 4), (9, 9, 9)).save(folder / name)
    listed = [str(folder / name) for name in ("deep/er/6.png", "2.png", "0.png", "gone.png", "2.png")]
    found = captions(listed)
    assert [row["file_name"] for row in found] == ["deep/er/6.png", "2.png", "0.png"]
    with (folder / "failed.csv").open() as file:
        assert [row["file_name"] for row in csv.DictReader(file)] == ["gone.png"]
    order = bulk_order(get_model_entry("blip2-opt-mini"), AdapterStore("store"), listed, ())
    assert [item.stem for item in order.items] == ["deep/er/6", "2.png", "0", "gone"], "as of the whole folder"
    with pytest.raises(UsageError, match="The list of images is empty"):
        captions([])


def test_what_means_nothing_of_a_source_is_refused(folder: Path) -> None:
    table = write(folder / "rows.jsonl", [{"file_name": "1.png"}])
    for source, wishes, what in (
        (folder, {"answers": True}, "answers is for rows"),
        (folder, {"split": "train"}, "split is for data sets of the hub"),
        (table, {"recursive": True}, "recursive is for folders"),
        ("hub:set", {"images": folder}, "images is for rows of a file"),
    ):
        with pytest.raises(UsageError, match=what):
            captions(source, **wishes)
    with pytest.raises(UsageError, match="txt and xmp are for images of a folder or a list"):
        bulk_order(get_model_entry("blip2-opt-mini"), AdapterStore("store"), table, (), write=["txt"])


def test_a_table_of_which_no_row_can_be_used_is_refused_before_anything_is_done(folder: Path) -> None:
    rows = [{"img": f"{red}.png", "frage": "what?", "answer": "that"} for red in range(4)]
    table, out = write(folder / "rows.jsonl", rows), folder / "answers.jsonl"
    with pytest.raises(DataError, match="none of its rows can be used") as wrong:
        run(table, out)
    assert "no question (columns: img, frage, answer)" in str(wrong.value)
    assert "--columns" in str(wrong.value)
    report, _ = run(table, out, columns=Columns({"question": "frage"}))
    assert report.texts == 4
    (folder / "elsewhere").mkdir()
    with pytest.raises(DataError, match=r"file '0\.png' does not exist"):
        run(
            write(folder / "rows.jsonl", [{"image": f"{n}.png", "question": "what?"} for n in range(4)]),
            out,
            images=folder / "elsewhere",
        )
    rows[2] = {"image": "2.png", "question": "what?"}
    report, _ = run(write(folder / "rows.jsonl", rows), folder / "some.jsonl")
    assert (report.texts, report.failed) == (1, 3)
    assert report.lines()[0].startswith("1 text about 1 row, ")


def test_somebodys_file_is_protected_and_the_way_out_is_one_that_there_is(folder: Path) -> None:
    table, out = write(folder / "rows.jsonl", [{"image": "1.png", "question": "what?"}]), folder / "mine.jsonl"
    out.write_text("mine")
    with pytest.raises(PathError, match=r"Name another file, --out\.$"):
        run(table, out)
    assert out.read_text() == "mine"


def test_tables_keep_all_columns_of_all_rows(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": "0.png", "id": 1, "adapter": "usb-c charger"},
        {"file_name": "1.png", "id": "three", "note": "half \udcff", "caption": "a human caption"},
        {"file_name": "2.png", "id": None, "score": float("nan"), "boxes": [[1, 2]]},
    ]
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows).replace("NaN", "null"))
    for kind in ("jsonl", "csv", "parquet"):
        order = bulk_order(
            get_model_entry("blip2-opt-mini"), AdapterStore("store"), table, (), out=folder / f"out.{kind}"
        )
        BulkJob(order, LocalAnswers(lambda: answering(FakeEngine(lambda _: "said")), Pace(3))).run()
    read = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["caption_base"] for row in read] == ["said"] * 3
    assert (read[0]["adapter"], read[0]["adapter_lorax_vlm"]) == ("usb-c charger", "blip2-opt-mini")
    assert (read[1]["caption"], read[1]["note"]) == ("a human caption", "half \\udcff")
    with (folder / "out.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [row["note"] for row in cells] == ["", "half \\udcff", ""]
    stored = Dataset.from_parquet(str(folder / "out.parquet"))
    assert stored["id"] == ["1", "three", None]
    assert stored["boxes"] == [None, None, [[1, 2]]]
    assert set(stored.column_names) == {name for row in read for name in row}


def test_numbers_that_are_none_are_nothing() -> None:
    assert _value({"a": float("nan"), "b": [float("inf"), 1.5], "c": b"x"}) == {"a": None, "b": [None, 1.5], "c": None}


def test_an_output_is_of_one_source(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        write(folder / name / "rows.jsonl", [{"file_name": "0.png"}])
        Pictures.new("RGB", (4, 4), (7, 0, 0)).save(folder / name / "0.png")
    captions(folder / "a" / "rows.jsonl", folder / "out")
    with pytest.raises(PathError, match=r"what is there is about .*a/rows\.jsonl, not about .*b/rows\.jsonl"):
        captions(folder / "b" / "rows.jsonl", folder / "out")
    captions(folder / "a", folder / "texts")
    with pytest.raises(PathError, match="what is there is about"):
        captions(folder / "b", folder / "texts")
    captions(folder / "b", folder / "texts", existing="overwrite-all")


def test_a_template_of_rows_has_the_image_s_name_and_folder(folder: Path) -> None:
    table = write(folder / "rows.jsonl", [{"file_name": "2.png"}])
    out = folder / "said.jsonl"
    run(table, out, answers=False, template="{caption} of {name} in {folder}")
    assert json.loads(out.read_text())["caption"] == f"2 None of 2 in {folder.name}"


@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_what_is_added_to_texts_takes_texts(folder: Path, existing: str) -> None:
    with pytest.raises(UsageError, match="txt or xmp"):
        run(
            write(folder / "rows.jsonl", [{"file_name": "2.png"}]), folder / "o.jsonl", answers=False, existing=existing
        )
