"""A bulk job on a cluster of two workers on this machine: the same texts, a worker killed, gone on with."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.answering import Answering
from lorax_vlm.bulk.counts import BulkReport
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.on_ray import RayAnswers, RayPace
from lorax_vlm.bulk.order import bulk_order
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.workspace import Workspace
from tests.adapters_for_tests import write_manifest, write_random_adapter

MODEL = "blip2-opt-mini"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, scene in enumerate(iterate_scenes("test", 90)):
        scene.image.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def store(mini: LoadedModel, tmp_path: Path) -> AdapterStore:
    store = AdapterStore(tmp_path / "store")
    folder = write_random_adapter(mini, tmp_path / "one", seed=1, scale=0.1)
    store.add("one", folder, write_manifest(mini, folder))
    return store


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run(photos: Path, store: AdapterStore, out: Path, answering: Answering) -> BulkReport:
    order = bulk_order(
        get_model_entry(MODEL), store, photos, ["base", "one"], out=out, write=["txt", "jsonl"], likelihood=True
    )
    return BulkJob(order, answering).run()


def contents(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.iterdir() if path.suffix == ".txt"}


def on_ray(store: AdapterStore) -> RayAnswers:
    return RayAnswers(MODEL, {"store": store.root}, RayPace(batch_size=8))


@pytest.mark.usefixtures("cluster")
def test_a_cluster_says_what_one_machine_says_also_when_a_worker_dies(
    photos: Path, store: AdapterStore, tmp_path: Path
) -> None:
    alone = Workspace(store=store.root).bulk(
        photos, ["base", "one"], base=MODEL, out=tmp_path / "alone", write=["txt", "jsonl"], likelihood=True
    )
    expected = alone.run()
    report = run(photos, store, tmp_path / "ray", on_ray(store))
    assert (report.texts, report.failed) == (expected.texts, expected.failed) == (180, 1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert "no picture" not in (tmp_path / "ray" / "failed.csv").read_text()
    assert (tmp_path / "ray" / "failed.csv").read_text() == (tmp_path / "alone" / "failed.csv").read_text()
    assert run(photos, store, tmp_path / "ray", on_ray(store)).texts == 0

    killed: list[int] = []

    def kill_a_worker() -> None:
        out = tmp_path / "killed"
        while not list(out.glob("*.txt")):
            time.sleep(0.02)
        workers = [one.pid for one in psutil.process_iter(["name", "cmdline"]) if "_Worker" in " ".join(one.cmdline())]
        os.kill(workers[0], signal.SIGKILL)
        killed.append(workers[0])

    thread = threading.Thread(target=kill_a_worker)
    thread.start()
    report = run(photos, store, tmp_path / "killed", on_ray(store))
    thread.join()
    assert killed
    assert (report.texts, report.failed) == (180, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "alone")


@pytest.mark.usefixtures("cluster")
def test_a_job_that_was_stopped_goes_on_on_a_cluster(photos: Path, store: AdapterStore, tmp_path: Path) -> None:
    order = bulk_order(get_model_entry(MODEL), store, photos, ["one"], out=tmp_path / "out")
    job = BulkJob(order, on_ray(store))

    class Stop:
        def started(self, plan: object) -> None: ...
        def said(self, name: str, texts: object) -> None:
            job.stop()

        def failed(self, name: str, error: object) -> None: ...
        def described(self, name: str) -> None: ...

        def ended(self, report: BulkReport) -> None: ...

    first = job.run(Stop())
    assert first.interrupted
    assert 0 < first.texts < 90
    second = BulkJob(order, on_ray(store)).run()
    assert first.texts + second.texts == 90
    assert len(contents(tmp_path / "out")) == 90
