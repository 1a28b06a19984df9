"""Texts about folders: each image once, nothing lost, nothing of anybody's written over."""

import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.columns import Column
from lorax_vlm.bulk.counts import BulkPlan, BulkReport
from lorax_vlm.bulk.folder import ImageFolder
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.journal import Journal
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.sidecars import Existing
from lorax_vlm.bulk.wording import Wording
from lorax_vlm.errors import DamagedAdapter, ExampleError, LoraxError, PathError, PromptError, UsageError
from lorax_vlm.requests import Request
from lorax_vlm.runtime.fake import FakeEngine

ONE = Column("one", "one", "one@1", "digest of one", "greedy")
TWO = Column("two", "two", "two@1", "digest of two", "greedy")


def say(request: Request) -> str:
    """What a text is made of: the picture's first pixel, and the adapter."""
    picture, _ = request.single()
    return f"{picture.getpixel((0, 0))[0]} by {request.adapter}"


def paint(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path, "PNG")


class Bench:
    """A folder, an engine that is asked about it, and jobs."""

    def __init__(self, root: Path) -> None:
        self.root, self.engine = root, FakeEngine(say)
        self.opened = 0

    def job(self, *columns: Column, **wanted: Any) -> BulkJob:
        order = BulkOrder(ImageFolder(self.root, recursive=True), columns or (ONE,), self.root, **wanted)
        return BulkJob(order, LocalAnswers(self._open, Pace(batch_size=4, threads=2)))

    def run(self, *columns: Column, **wanted: Any) -> BulkReport:
        self.engine.asked.clear()
        return self.job(*columns, **wanted).run()

    @contextmanager
    def _open(self) -> Iterator[FakeEngine]:
        self.opened += 1
        yield self.engine

    def texts(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in sorted(self.root.rglob("*.txt"))}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    for red in range(10):
        paint(tmp_path / "photos" / f"p{red}.png", red)
    return Bench(tmp_path / "photos")


def test_each_image_gets_its_text_once(bench: Bench) -> None:
    report = bench.run()
    assert bench.texts() == {f"p{red}.txt": f"{red} by one@1" for red in range(10)}
    assert (report.texts, report.images, report.written, report.failed) == (10, 10, 10, 0)
    again = bench.run()
    assert (again.texts, again.written, again.plan.done) == (0, 0, 10)
    assert bench.opened == 1, "nobody loads a model for nothing"


def test_texts_have_the_rights_of_any_file(bench: Bench) -> None:
    former = os.umask(0o027)
    try:
        bench.run()
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in bench.root.glob("*.txt")} == {0o640}


def test_one_bad_file_never_ends_it(bench: Bench) -> None:
    (bench.root / "p3.png").write_bytes(b"no picture")
    (bench.root / "p5.png").unlink()
    (bench.root / "p5.png").symlink_to(bench.root / "nowhere.png")
    report = bench.run()
    assert report.failed == 2
    assert sorted(bench.texts()) == [f"p{red}.txt" for red in range(10) if red not in (3, 5)]
    with (bench.root / "failed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file_name"], row["error"]) for row in rows] == [("p3.png", "ImageError"), ("p5.png", "ImageError")]
    assert "known format" in rows[0]["reason"]
    paint(bench.root / "p3.png", 33)
    (bench.root / "p5.png").unlink()
    assert bench.run().plan.texts == {"failed before": 1}
    assert bench.texts()["p3.txt"] == "33 by one@1"
    assert not (bench.root / "failed.csv").exists()


def test_a_row_that_cannot_be_answered_fails_alone_and_an_adapter_ends_the_job(bench: Bench) -> None:
    def odd(request: Request) -> str:
        if say(request).startswith("7 "):
            raise PromptError("it", "it is odd.")
        return say(request)

    bench.engine.say = odd
    report = bench.run()
    assert (report.texts, report.failed) == (9, 1)

    def broken(_: Request) -> str:
        raise DamagedAdapter("one", "a folder", ["it is cut short"])

    bench.engine.say = broken
    with pytest.raises(DamagedAdapter):
        bench.run(TWO)


def test_what_has_changed_is_said_and_done_again(bench: Bench) -> None:
    bench.run()
    paint(bench.root / "p1.png", 101)
    os.utime(bench.root / "p2.png", (0, 0))  # looks changed, and is not
    later = bench.job().plan()
    assert (later.texts, later.done) == ({"another image": 1}, 9)
    bench.run()
    assert bench.texts()["p1.txt"] == "101 by one@1"
    assert len(bench.engine.asked) == 1
    other = Column("one", "one", "one@2", "another digest", "greedy")
    assert bench.job(other).plan().texts == {"another adapter": 10}
    beams = Column("one", "one", "one@1", "digest of one", "five beams")
    assert bench.job(beams).plan().texts == {"other settings": 10}
    bench.run(other)
    assert bench.texts()["p4.txt"] == "4 by one@2"


def test_a_dry_run_leaves_nothing(bench: Bench) -> None:
    before = sorted(bench.root.rglob("*"))
    plan = bench.job().plan()
    assert plan.lines() == ["10 images, 0 of them done", "to be made: 10 texts about 10 images (10 new)"]
    assert sorted(bench.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("existing", "hand", "edited", "machine"),
    [
        ("skip", "by hand", "edited", "1 by one@1"),
        ("overwrite", "by hand", "edited", "1 by two@1"),
        ("overwrite-all", "2 by two@1", "3 by two@1", "1 by two@1"),
        ("append", "by hand, 2 by two@1", "edited", "1 by one@1, 1 by two@1"),
        ("prepend", "2 by two@1, by hand", "edited", "1 by two@1, 1 by one@1"),
    ],
)
def test_texts_that_are_there(bench: Bench, existing: Existing, hand: str, edited: str, machine: str) -> None:
    """What somebody wrote, what was written here and then edited, and what was written here by another adapter."""
    (bench.root / "p2.txt").write_text("by hand\n")
    bench.run()
    (bench.root / "p3.txt").write_text("edited")
    for _ in range(2):
        bench.run(TWO, existing=existing)
        texts = bench.texts()
        assert (texts["p2.txt"].strip(), texts["p3.txt"], texts["p1.txt"]) == (hand, edited, machine)
    bench.run(TWO)
    assert bench.texts() == texts, "what is by hand in part stays when nothing is to be added any more"


def test_an_empty_text_is_none(bench: Bench) -> None:
    """As somebody left it, or a power failure."""
    (bench.root / "p2.txt").write_bytes(b"\n")
    bench.run()
    (bench.root / "p3.txt").write_bytes(b"")
    assert bench.run().written == 1
    assert bench.texts() == {f"p{red}.txt": f"{red} by one@1" for red in range(10)}


def test_what_is_put_around_a_caption_asks_nobody_again(bench: Bench) -> None:
    bench.run()
    report = bench.run(wording=Wording("ohwx, ", "!", "{prefix}{caption}{suffix} {folder}/{name} {adapter}"))
    assert bench.texts()["p1.txt"] == "ohwx, 1 by one@1! photos/p1 one"
    assert (report.texts, report.written) == (0, 10)
    bench.run()
    assert bench.texts()["p1.txt"] == "1 by one@1"


def test_several_columns_have_files_of_their_own_or_one_is_picked(bench: Bench) -> None:
    bench.engine.say = lambda request: say(request) + (" and more" if request.adapter == "two@1" else "")
    bench.run(ONE, TWO)
    assert bench.texts()["p1.one.txt"] == "1 by one@1"
    assert bench.texts()["p1.two.txt"] == "1 by two@1 and more"
    report = bench.run(ONE, TWO, pick="longest", write=("txt", "jsonl"))
    assert report.texts == 0
    assert bench.texts()["p1.txt"] == "1 by two@1 and more"
    rows = [json.loads(line) for line in (bench.root / "metadata.jsonl").read_text().splitlines()]
    assert (rows[1]["caption"], rows[1]["caption_one"]) == ("1 by two@1 and more", "1 by one@1")


def test_somebody_elses_table_is_not_written_over(bench: Bench) -> None:
    (bench.root / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(PathError, match="not as it was written here"):
        bench.run(write=("jsonl",))
    assert not bench.engine.asked
    assert (bench.root / "metadata.jsonl").read_text() == "{}\n"
    bench.run(write=("jsonl",), existing="overwrite-all")
    assert len((bench.root / "metadata.jsonl").read_text().splitlines()) == 10
    stamp = (bench.root / "metadata.jsonl").stat().st_mtime_ns
    bench.run(write=("jsonl",))
    assert (bench.root / "metadata.jsonl").stat().st_mtime_ns == stamp, "nothing has changed"


def test_another_process_is_kept_out(bench: Bench) -> None:
    def inside(request: Request) -> str:
        with pytest.raises(PathError, match="another process is writing"):
            bench.job().run()
        return say(request)

    bench.engine.say = inside
    bench.run()
    bench.engine.say = say
    bench.run()


def test_images_whose_texts_stay_are_not_called_done(bench: Bench) -> None:
    for red in (1, 2, 3):
        (bench.root / f"p{red}.txt").write_text("by hand")
    assert bench.run().texts == 7
    plan = bench.job().plan()
    assert (plan.done, plan.staying) == (7, 3)
    assert plan.lines() == ["10 images, 7 of them done", "left as they are: 3 texts not written here"]


@pytest.mark.parametrize("first", [True, False], ids=["the first table", "another one"])
def test_a_kill_between_a_table_and_its_record_is_no_stranger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    from lorax_vlm.bulk import tables

    if not first:
        bench.run(write=("jsonl",))
        paint(bench.root / "p3.png", 77)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_note", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            bench.run(write=("jsonl",))
    bench.run(write=("jsonl",))
    rows = [json.loads(line) for line in (bench.root / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 10
    (bench.root / "metadata.jsonl").write_text("somebody's")
    with pytest.raises(PathError, match="it is there already"):
        bench.run(write=("jsonl",))


def test_stopping_ends_after_the_batch(bench: Bench) -> None:
    job = bench.job()

    class Stop:
        def started(self, plan: BulkPlan) -> None: ...

        def said(self, name: str, texts: Mapping[str, str]) -> None:
            job.stop()

        def failed(self, name: str, error: LoraxError) -> None: ...

        def described(self, name: str) -> None: ...

        def ended(self, report: BulkReport) -> None: ...

    report = job.run(Stop())
    assert (report.interrupted, report.texts, len(bench.texts())) == (True, 8, 8), (
        "a batch was being said while the first was written"
    )
    assert bench.run().texts == 2


def test_a_full_disk_ends_it_and_loses_nothing_that_was_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorax_vlm.bulk import job as module

    writes: list[str] = []

    def full(root: Path, path: str, content: bytes) -> Any:
        if len(writes) == 6:
            raise PathError(path, "No space left on device")
        writes.append(path)
        return real(root, path, content)

    real = module.write_text
    monkeypatch.setattr(module, "write_text", full)
    with pytest.raises(PathError, match="No space"):
        bench.run()
    monkeypatch.setattr(module, "write_text", real)
    assert len(bench.texts()) == 6
    report = bench.run()
    assert (report.texts, report.written) == (2, 4), "two batches were said; two files of the second are missing"
    assert bench.texts() == {f"p{red}.txt": f"{red} by one@1" for red in range(10)}


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.bulk.test_bulk_job import Bench, say
bench = Bench(Path(sys.argv[1]))
def slow(request):
    text = say(request)
    time.sleep(0.002)
    return text
bench.engine.say = slow
print("go", flush=True)
report = bench.run(write=("txt", "jsonl"))
print("done", report.texts, flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    """Killed at random moments: in the end no text is missing, none is another image's, no file is half."""
    bench, random_ms = Bench(tmp_path / "photos"), random.Random(5)
    for red in range(250):
        paint(bench.root / f"p{red}.png", red)
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parents[2])))
    kills = 0
    while kills < 100:
        process = subprocess.Popen([sys.executable, str(script), str(bench.root)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        time.sleep(random_ms.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for path in bench.root.glob("*.txt"):
            assert path.read_text() == f"{path.stem[1:]} by one@1"
        if len(bench.texts()) == 250 and kills > 20:
            for path in random_ms.sample(sorted(bench.root.glob("*.txt")), 40):
                path.unlink()  # something is to be done again
    bench.run(write=("txt", "jsonl"))
    assert bench.texts() == {f"p{red}.txt": f"{red} by one@1" for red in range(250)}
    rows = [json.loads(line) for line in (bench.root / "metadata.jsonl").read_text().splitlines()]
    assert [(row["file_name"], row["caption"]) for row in rows] == [
        (f"p{red}.png", f"{red} by one@1") for red in range(250)
    ]


def test_what_failed_once_and_is_done_again_is_no_failure(bench: Bench) -> None:
    bench.run()
    image = bench.root / "p3.png"
    data, times = image.read_bytes(), image.stat()
    image.write_bytes(b"half")
    assert bench.run().failed == 1
    assert (bench.root / "failed.csv").exists()
    image.write_bytes(data)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = bench.run()
    assert (report.failed, report.failures, report.texts) == (0, None, 0)
    assert not (bench.root / "failed.csv").exists()
    image.write_bytes(b"half")
    assert bench.run().failed == 1
    (bench.root / "p3.txt").write_text("mine")
    assert bench.run().failed == 0, "a text by hand is there, and nothing is to be said"


def test_a_full_disk_is_said_as_such(bench: Bench) -> None:
    """SQLite rolls back itself then, and its second error is not the one to tell."""
    bench.run()
    with Journal(bench.root / ".lorax-vlm" / "captions.sqlite") as journal:
        pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
        journal._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(PathError, match="database or disk is full"), journal.changing():
            journal.note_failed("one", LoraxError("x" * 2**20))
    assert bench.run().texts == 0, "what was kept before is there"


# --- how likely texts are -------------------------------------------------------------------------------------------


class Scoring(FakeEngine):
    """Finds a text as likely as the picture is red, by ``two`` half so much."""

    def __init__(self) -> None:
        super().__init__(say)
        self.scored: list[Request] = []

    def likelihoods(self, requests: Sequence[Request], texts: Sequence[str]) -> list[float]:
        self.scored += requests
        assert [say(request) for request in requests] == list(texts)
        return [
            request.single()[0].getpixel((0, 0))[0] / (20 if request.adapter == "two@1" else 10) for request in requests
        ]


@pytest.fixture
def scoring(bench: Bench) -> Bench:
    bench.engine = Scoring()
    return bench


def table(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (bench.root / "metadata.jsonl").read_text().splitlines()]


def test_the_likeliest_text_is_written(scoring: Bench) -> None:
    report = scoring.run(ONE, TWO, pick="likeliest", likelihood=True, write=("txt", "jsonl"))
    assert (report.texts, report.scored) == (20, 0)
    assert scoring.texts()["p7.txt"] == "7 by one@1"
    row = table(scoring)[7]
    assert (row["caption"], row["likelihood_one"], row["likelihood_two"]) == ("7 by one@1", 0.7, 0.35)
    scoring.run(TWO, ONE, pick="first", write=("txt", "jsonl"), existing="overwrite")
    assert scoring.texts()["p7.txt"] == "7 by two@1"
    assert "likelihood_one" not in table(scoring)[7]


def test_texts_of_former_runs_get_their_likelihood_without_being_said_again(scoring: Bench) -> None:
    scoring.run(write=("txt", "jsonl"))
    assert scoring.job(likelihood=True, write=("txt", "jsonl")).plan().texts == {"no likelihood": 10}
    report = scoring.run(likelihood=True, write=("txt", "jsonl"))
    assert (report.texts, report.scored, report.images, report.tokens) == (0, 10, 0, 0)
    assert scoring.engine.asked == []
    assert [row["likelihood"] for row in table(scoring)] == [red / 10 for red in range(10)]
    assert scoring.run(likelihood=True, write=("txt", "jsonl")).scored == 0


def test_the_least_likely_texts_are_shown(scoring: Bench) -> None:
    paint(scoring.root / "p3.png", 99)
    report = scoring.run(likelihood=True, review=3)
    page = (scoring.root / "review.html").read_text()
    assert report.review == scoring.root / "review.html"
    assert [text in page for text in ("0 by one@1", "1 by one@1", "2 by one@1", "4 by one@1")] == [True] * 3 + [False]
    assert page.count("data:image/jpeg") == 3
    assert page.index("0 by one@1") < page.index("1 by one@1")
    (scoring.root / "review.html").write_text("mine")
    with pytest.raises(PathError, match="lorax-vlm did not write"):
        scoring.run(likelihood=True, review=3)


def test_an_engine_that_cannot_say_is_named_before_anything_is_kept(bench: Bench) -> None:
    with pytest.raises(UsageError, match="does not say how likely"):
        bench.run(likelihood=True, write=("jsonl",))
    assert bench.run(write=("jsonl",)).texts == 10


def test_a_journal_of_the_former_version_goes_on(bench: Bench) -> None:
    bench.run()
    with sqlite3.connect(bench.root / ".lorax-vlm" / "captions.sqlite") as journal:
        journal.execute("ALTER TABLE texts DROP COLUMN likelihood")
        journal.execute("PRAGMA user_version = 1")
    journal.close()
    assert bench.run().texts == 0
    bench.engine = Scoring()
    assert bench.run(likelihood=True, write=("jsonl",)).scored == 10


# --- what an attack found -------------------------------------------------------------------------------------------


def test_images_that_change_places_are_said_anew(bench: Bench) -> None:
    """With size and time of their own, as ``mv`` and archives leave them."""
    for path in bench.root.glob("*.png"):
        os.utime(path, (1, 1))
    bench.run()
    for old, new in (("p1", "x"), ("p2", "p1"), ("x", "p2")):
        (bench.root / f"{old}.png").rename(bench.root / f"{new}.png")
    assert bench.run().texts == 2
    assert (bench.texts()["p1.txt"], bench.texts()["p2.txt"]) == ("2 by one@1", "1 by one@1")


def test_what_somebody_writes_while_a_job_runs_stays(bench: Bench) -> None:
    def say_and_write(request: Request) -> str:
        (bench.root / "p9.txt").write_text("by hand")
        return say(request)

    bench.engine.say = say_and_write
    report = bench.run()
    assert bench.texts()["p9.txt"] == "by hand"
    assert (report.written, report.left) == (9, 1)
    assert "left as they are: 1 text that somebody wrote meanwhile" in report.lines()


def test_a_folder_in_the_place_of_a_text_is_one_failure(bench: Bench) -> None:
    (bench.root / "p3.txt").mkdir()
    report = bench.run()
    assert (report.texts, report.failed) == (9, 1)
    (bench.root / "p3.txt").rmdir()
    assert (bench.run().texts, bench.run().failed) == (1, 0)


def test_columns_by_turns_are_appended_once_each(bench: Bench) -> None:
    (bench.root / "p1.txt").write_text("hand")
    for column in (ONE, TWO, ONE, TWO, ONE):
        bench.run(column, existing="append")
    assert bench.texts()["p1.txt"] == "hand, 1 by one@1, 1 by two@1"


def test_a_text_that_fills_the_model_has_no_likelihood_and_harms_no_other(scoring: Bench) -> None:
    class Full(Scoring):
        def likelihoods(self, requests: Sequence[Request], texts: Sequence[str]) -> list[float]:
            if any(text.startswith("3 ") for text in texts):
                raise ExampleError("row 0", "257 tokens, the language model has 256 positions.")
            return super().likelihoods(requests, texts)

    scoring.engine = Full()
    assert scoring.run(likelihood=True, write=("jsonl",)).texts == 10
    assert [row["likelihood"] for row in table(scoring)] == [red / 10 if red != 3 else None for red in range(10)]


def test_a_list_of_failures_that_is_not_ours_stays(bench: Bench) -> None:
    (bench.root / "failed.csv").write_text("mine")
    bench.run(existing="overwrite-all")
    assert (bench.root / "failed.csv").read_text() == "mine"
