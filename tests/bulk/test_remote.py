"""Images and outputs behind addresses: the same texts, and nothing of anybody's lost there."""

import json
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk import claim, remote
from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.counts import BulkReport
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.order import bulk_order
from lorax_vlm.bulk.remote import Mirror
from lorax_vlm.errors import PathError, RemoteError, UsageError
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.requests import Request
from lorax_vlm.settings import outputs_dir
from lorax_vlm.sharing.places import RemoteFolder
from tests.bulk.test_bulk_job import Bench, paint
from tests.sharing.test_remotes import s3  # noqa: F401 - a fixture

CLAIM = ".lorax-vlm/captions.sqlite.writing.json"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    for red in range(10):
        paint(tmp_path / "photos" / f"p{red}.png", red)
    paint(tmp_path / "photos" / "deep" / "p1.png", 31)
    (tmp_path / "photos" / ".DS_Store").write_bytes(b"junk")
    return Bench(tmp_path / "photos")


@pytest.fixture(params=["memory", "s3"])
def there(request: pytest.FixtureRequest, bench: Bench) -> str:
    """The folder behind an address."""
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        url = "memory://bucket/photos"
    else:
        url = f"{request.getfixturevalue('s3')}/{bench.root.parent.name}/photos"  # its server keeps what others sent
    system, root = fsspec.core.url_to_fs(url)
    for path in bench.root.rglob("*"):
        if path.is_file():
            name = path.relative_to(bench.root).as_posix()
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
            system.put(str(path), f"{root}/{name}")
    return url


def run(bench: Bench, source: str | Path, **wishes: Any) -> BulkReport:
    bench.engine.asked.clear()
    order = bulk_order(get_model_entry("blip2-opt-mini"), AdapterStore(), source, [], **wishes)
    return BulkJob(order, LocalAnswers(bench._open, Pace(batch_size=4, threads=2))).run()


def contents(url: str) -> dict[str, bytes]:
    folder = RemoteFolder(url)
    return {name: folder.read(name) for name in folder.files() if not name.endswith((".png", ".DS_Store"))}


def texts(url: str) -> dict[str, bytes]:
    return {name: data for name, data in contents(url).items() if name.endswith(".txt")}


def test_texts_lie_beside_the_images_there_and_are_said_once(bench: Bench, there: str) -> None:
    report = run(bench, there, recursive=True)
    assert (report.texts, report.failed, report.out) == (11, 0, there)
    here = run(bench, bench.root, recursive=True)
    assert here.texts == 11
    expected = {path.relative_to(bench.root).as_posix(): path.read_bytes() for path in bench.root.rglob("*.txt")}
    assert texts(there) == expected
    assert len(expected) == 11
    assert run(bench, there, recursive=True).texts == 0
    shutil.rmtree(outputs_dir())
    again = run(bench, there, recursive=True)
    assert (again.texts, again.plan.done) == (0, 11), "another machine goes on from what lies there"


def test_tables_of_images_here_are_written_there_and_of_images_there_here(
    bench: Bench, there: str, tmp_path: Path
) -> None:
    out = there.replace("photos", "out")
    report = run(bench, bench.root, out=f"{out}/", write=["jsonl", "csv"])
    assert sorted(report.tables) == [f"{out}/captions.csv", f"{out}/metadata.jsonl"]
    rows = [json.loads(line) for line in contents(out)["metadata.jsonl"].splitlines()]
    assert [row["file_name"] for row in rows] == [f"p{red}.png" for red in range(10)]
    run(bench, there, out=tmp_path / "out", write=["jsonl"])
    own = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert own == rows


def test_what_somebody_wrote_or_removed_there_is_respected(bench: Bench, there: str) -> None:
    system, root = fsspec.core.url_to_fs(there)
    system.pipe_file(f"{root}/p3.txt", b"by hand")
    assert run(bench, there).texts == 9
    assert texts(there)["p3.txt"] == b"by hand"
    system.pipe_file(f"{root}/p4.txt", b"corrected")
    system.rm_file(f"{root}/p5.txt")
    report = run(bench, there, prefix="a, ")
    assert report.texts == 0, "the journal knows what was said"
    found = texts(there)
    assert (found["p3.txt"], found["p4.txt"]) == (b"by hand", b"corrected")
    assert found["p5.txt"].startswith(b"a, ")
    assert found["p6.txt"].startswith(b"a, ")
    system.pipe_file(f"{root}/p6.png", system.cat_file(f"{root}/p9.png"))
    assert run(bench, there, prefix="a, ").plan.texts == {"another image": 1}


def test_what_was_not_sent_is_sent_the_next_time(bench: Bench, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is lost in the middle: texts stay here, and nothing is said again."""
    original, sent = RemoteFolder.send, list[str]()

    def fail(self: RemoteFolder, files: Mapping[str, Path]) -> None:
        sent.extend(files)
        if len(sent) > 5:
            raise RemoteError(self.url, "the network is gone")
        original(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "send", fail)
        patch.setattr(remote, "_SENT_EVERY_S", 0.0)
        with pytest.raises(RemoteError, match="network is gone"):
            run(bench, there)
        with pytest.raises(RemoteError, match="network is gone"):
            run(bench, there)  # again, the same
    partly = texts(there)
    assert 0 < len(partly) < 10
    report = run(bench, there)
    assert report.texts < 10
    assert len(texts(there)) == 10
    assert run(bench, there).plan.done == 10


def test_texts_that_were_on_their_way_are_sent_the_next_time(
    bench: Bench, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal arrived and the texts did not."""
    original = RemoteFolder.send

    def fail(self: RemoteFolder, files: Mapping[str, Path]) -> None:
        if any(name.endswith(".txt") for name in files):
            raise RemoteError(self.url, "the network is gone")
        original(self, files)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "send", fail)
        patch.setattr(remote, "_SENT_EVERY_S", 0.0)
        for _ in range(3):
            with pytest.raises(RemoteError, match="network is gone"):
                run(bench, there)
    assert texts(there) == {}
    assert run(bench, there).texts < 10
    assert len(texts(there)) == 10
    assert run(bench, there).plan.done == 10


def test_of_a_machine_that_was_lost_the_texts_there_are_known_to_be_ours(
    bench: Bench, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before it had ended, and another one goes on: the journal went before the texts."""
    with monkeypatch.context() as patch:
        patch.setattr(remote, "_SENT_EVERY_S", 0.0)
        patch.setattr(Mirror, "finish", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            run(bench, there)
    assert len(texts(there)) >= 8, "all batches but perhaps the last"
    shutil.rmtree(outputs_dir())
    report = run(bench, there, prefix="a, ")
    assert report.plan.kept == {}
    assert all(text.startswith(b"a, ") for text in texts(there).values())
    assert len(texts(there)) == 10


def test_what_is_cleared_away_here_stays_there(bench: Bench, there: str) -> None:
    system, root = fsspec.core.url_to_fs(there)
    system.pipe_file(f"{root}/p3.txt", b"by hand")
    system.pipe_file(f"{root}/notes.txt", b"my notes")
    run(bench, there)
    for path in outputs_dir().rglob("*.txt"):
        path.unlink()
    assert run(bench, there).texts == 0
    found = contents(there)
    assert (found["p3.txt"], found["notes.txt"]) == (b"by hand", b"my notes")


def test_only_what_is_a_jobs_is_fetched_and_a_dry_run_changes_nothing(bench: Bench, there: str) -> None:
    system, root = fsspec.core.url_to_fs(there)
    for name in ("notes.txt", "deep/p1.txt", "big.bin", "../evil.txt", "a/../../evil2.txt"):
        system.pipe_file(f"{root}/{name}", b"somebody's")
    before = contents(there)
    order = bulk_order(get_model_entry("blip2-opt-mini"), AdapterStore(), there, [])
    plan = BulkJob(order, LocalAnswers(bench._open)).plan()
    assert plan.to_ask == 10
    assert contents(there) == before
    run(bench, there)
    here = {path.name for path in outputs_dir().rglob("*") if path.is_file()}
    assert not here & {"notes.txt", "big.bin", "evil.txt", "evil2.txt"}
    assert not list(outputs_dir().parent.rglob("evil*"))


def test_one_process_of_this_machine_works_on_an_output(bench: Bench, there: str, tmp_path: Path) -> None:
    mirror = Mirror(RemoteFolder(there), outputs_dir())
    with mirror.held(), pytest.raises(PathError, match="another process"):
        run(bench, there)


def test_rows_behind_an_address_show_images_beside_them_there(bench: Bench, there: str, tmp_path: Path) -> None:
    system, root = fsspec.core.url_to_fs(there)
    rows = [{"file_name": name, "n": n} for n, name in enumerate(["p3.png", "deep/p1.png", "gone.png", "../p2.png"])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    system.pipe_file(f"{root}/rows.jsonl", lines.encode())
    (bench.root / "rows.jsonl").write_text(lines)
    report = run(bench, f"{there}/rows.jsonl", out=tmp_path / "there.jsonl")
    run(bench, bench.root / "rows.jsonl", out=tmp_path / "here.jsonl")
    assert (report.texts, report.failed) == (2, 2)
    assert (tmp_path / "there.jsonl").read_bytes() == (tmp_path / "here.jsonl").read_bytes()
    said = [json.loads(line) for line in (tmp_path / "there.jsonl").read_text().splitlines()]
    assert [row.get("n") for row in said if row.get("caption")] == [0, 1]
    failed = (tmp_path / "there.jsonl.failed.csv").read_text()
    assert "gone.png" in failed
    assert "leads out of the folder" in failed
    assert run(bench, f"{there}/rows.jsonl", out=tmp_path / "there.jsonl").texts == 0


def test_rows_here_show_images_there_by_id_and_in_sub_folders(bench: Bench, there: str, tmp_path: Path) -> None:
    system, root = fsspec.core.url_to_fs(there)
    system.pipe_file(f"{root}/val/000000000007.png", system.cat_file(f"{root}/p7.png"))
    for name in [f"p{red}.png" for red in range(10)]:
        system.rm_file(f"{root}/{name}")
    (tmp_path / "rows.csv").write_text("image_id,question\n7,what?\n8,what?\n")
    wanted = {"answers": True, "out": tmp_path / "answers.jsonl"}
    report = run(bench, tmp_path / "rows.csv", images=there, **wanted)
    assert (report.texts, report.failed) == (1, 1)
    assert "no image file for image_id 8" in (tmp_path / "answers.jsonl.failed.csv").read_text()


def test_a_table_that_is_not_there_is_said(bench: Bench) -> None:
    with pytest.raises(RemoteError, match=r"rows\.csv"):
        run(bench, "memory://bucket/rows.csv")


def write_claim(there: str, **said: Any) -> None:
    facts = {"process": 7, "host": "elsewhere", "began": 1.0, "renewed": time.time(), **said}
    RemoteFolder(there).write(CLAIM, json.dumps(facts).encode())


def test_another_machine_that_writes_there_is_named_and_keeps_the_output(bench: Bench, there: str) -> None:
    write_claim(there)
    with pytest.raises(PathError, match="process 7 on elsewhere is writing texts there"):
        run(bench, there)
    assert not bench.engine.asked
    assert texts(there) == {}
    assert json.loads(RemoteFolder(there).read(CLAIM))["host"] == "elsewhere"


@pytest.mark.parametrize("said", [{"renewed": 0.0}, {"host": socket.gethostname()}, {"host": None}])
def test_who_has_gone_or_says_nothing_known_keeps_nobody_out(bench: Bench, there: str, said: dict[str, Any]) -> None:
    """It was not renewed for long; or its process, of this machine, is not there."""
    write_claim(there, **said)
    assert run(bench, there).texts == 10
    assert CLAIM not in RemoteFolder(there).files(), "and leaves no file of its own"


def test_who_was_written_over_ends_without_writing(bench: Bench, there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two began in the same moment, or one was away for long."""
    monkeypatch.setattr(claim, "_RENEWED_EVERY_S", 0.05)
    say, others = bench.engine.say, list[Request]()

    def taken(request: Request) -> str:
        if not others:
            others.append(request)
            for _ in range(10):  # perhaps between a look and a renewal of ours, which then writes over it
                write_claim(there)
                time.sleep(0.1)
        return say(request)

    bench.engine.say = taken
    with pytest.raises(PathError, match="process 7 on elsewhere"):
        run(bench, there)
    assert texts(there) == {}
    assert json.loads(RemoteFolder(there).read(CLAIM))["host"] == "elsewhere"
    RemoteFolder(there).remove(CLAIM)
    bench.engine.say = say
    assert run(bench, there).texts < 10, "what was said is kept here"
    assert len(texts(there)) == 10


def test_an_output_that_cannot_be_written_is_found_before_anything_is_said(
    bench: Bench, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: RemoteFolder, name: str, content: bytes) -> None:
        raise RemoteError(self.url, "access denied")

    monkeypatch.setattr(RemoteFolder, "write", refuse)
    with pytest.raises(RemoteError, match="access denied"):
        run(bench, there)
    assert not bench.engine.asked


def test_what_fails_is_listed_there_until_it_does_not(bench: Bench, there: str) -> None:
    system, root = fsspec.core.url_to_fs(there)
    good = system.cat_file(f"{root}/p2.png")
    system.pipe_file(f"{root}/p2.png", b"no picture")
    report = run(bench, there)
    assert (report.failed, report.failures) == (1, f"{there}/failed.csv")
    assert b"p2.png" in contents(there)["failed.csv"]
    system.pipe_file(f"{root}/p2.png", good)
    assert run(bench, there).failed == 0
    assert "failed.csv" not in contents(there)


def test_no_bucket_is_made_of_a_mistyped_name(bench: Bench, s3: str) -> None:  # noqa: F811 - the fixture
    system, _ = fsspec.core.url_to_fs(s3)
    before = system.ls("", refresh=True)
    with pytest.raises(RemoteError, match="bucket"):
        run(bench, bench.root, out="s3://mistyped/captions")
    assert not bench.engine.asked
    assert system.ls("", refresh=True) == before


def test_addresses_that_lead_nowhere_are_said(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(PathError, match="holds no images, or is not there"):
        run(bench, "memory://nowhere/photos")
    with pytest.raises(UsageError, match="a folder here for copies"):
        run(bench, bench.root, out="memory://bucket/out", write=["xmp"])
    with pytest.raises(RemoteError, match="names no folder"):
        run(bench, "memory://")
