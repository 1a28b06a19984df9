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
from lorax_vlm.bulk.counts import BulkReport
from lorax_vlm.bulk.job import BulkJob, Pace
from lorax_vlm.bulk.order import table_order
from lorax_vlm.bulk.rows import TableRows
from lorax_vlm.errors import DataError, UsageError
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
    rows = TableRows(table, **options)
    order = table_order(get_model_entry("blip2-opt-mini"), AdapterStore(out.parent / "store"), rows, (), out, {})
    return BulkJob(order, lambda: answering(engine), Pace(3)).run(), engine


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
    with pytest.raises(UsageError, match=r"out must be a \.jsonl, \.csv or \.parquet file"):
        run(table, folder / "out.txt")
    with pytest.raises(UsageError, match="is the table that is read"):
        run(table, table)
    with pytest.raises(UsageError, match="is no table"):
        run(folder / "1.png", folder / "out.csv")
    with pytest.raises(DataError, match="it has no rows"):
        run(write(folder / "none.jsonl", []), folder / "out.csv")
