"""Memory for adapters: a budget that is never exceeded, and nothing taken away from a call that uses it."""

import gc
import random
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.residency import Traffic, write_adapters
from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.errors import AdapterMemoryExceeded
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.residency import Residency
from lorax_vlm.runtime.weights import load_weights
from tests.adapters_for_tests import write_random_adapter


class Shelf:
    """Items of ten bytes that know how often they were loaded."""

    def __init__(self, budget: int | None) -> None:
        self.resident: Residency[str] = Residency(budget)
        self.loads: list[str] = []

    def load(self, name: str) -> str:
        self.loads.append(name)
        return name.upper()

    def lease(self, *names: str, version: int = 1):
        return self.resident.lease(dict.fromkeys(names, version), lambda _: 10, self.load)


def test_the_least_recently_used_leaves() -> None:
    shelf = Shelf(30)
    for names in (["a"], ["b"], ["c"], ["a"], ["d"]):
        with shelf.lease(*names) as found:
            assert found == {name: name.upper() for name in names}
    assert shelf.resident.names == ["c", "a", "d"]
    assert shelf.loads == ["a", "b", "c", "d"]
    assert shelf.resident.used_bytes == 30


def test_what_does_not_fit_is_refused_and_nothing_leaves_for_it() -> None:
    shelf = Shelf(20)
    for name in "ab":
        with shelf.lease(name):
            pass
    with pytest.raises(AdapterMemoryExceeded, match=r"3 adapters need 30 bytes"), shelf.lease("b", "c", "d"):
        pass
    assert shelf.resident.names == ["a", "b"]


def test_another_version_is_loaded_anew_and_the_old_one_counts_until_it_is_free() -> None:
    shelf = Shelf(30)
    with shelf.lease("a", version=1):
        with shelf.lease("a", version=2):
            assert shelf.resident.used_bytes == 20
        assert shelf.resident.used_bytes == 20
    assert shelf.resident.used_bytes == 10
    assert shelf.loads == ["a", "a"]


def test_a_failed_load_leaves_nothing() -> None:
    shelf = Shelf(20)

    def fail(name: str) -> str:
        raise OSError(name)

    with pytest.raises(OSError, match="a"), shelf.resident.lease({"a": 1}, lambda _: 10, fail):
        pass
    assert shelf.resident.names == []
    with shelf.lease("a", "b"):
        pass


def wait_for(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    for _ in range(2000):
        if condition():
            return
        done.wait(0.005)
    raise AssertionError("it never happened")


def test_a_call_waits_for_room_that_others_use() -> None:
    shelf = Shelf(20)
    entered = threading.Event()

    def ask() -> None:
        with shelf.lease("c"):
            entered.set()

    thread = threading.Thread(target=ask)
    with shelf.lease("a", "b"):
        thread.start()
        assert not entered.wait(0.1), "c was let in although nothing could leave"
        assert shelf.resident.used_bytes == 20
    thread.join(10)
    assert entered.is_set()


def test_emptying_waits_for_the_calls_in_progress() -> None:
    shelf = Shelf(None)
    emptied = threading.Event()

    def empty() -> None:
        with shelf.resident.idle():
            shelf.resident.clear()
        emptied.set()

    thread = threading.Thread(target=empty)
    with shelf.lease("a"):
        thread.start()
        assert not emptied.wait(0.1)
    thread.join(10)
    assert emptied.is_set()
    assert shelf.resident.names == []


def test_many_threads_never_exceed_the_budget() -> None:
    shelf = Shelf(50)
    seen: list[int] = []
    wrong: list[object] = []

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            names = rng.sample("abcdefghijklmnop", rng.randint(1, 4))
            with shelf.lease(*names) as found:
                seen.append(shelf.resident.used_bytes)
                if found != {name: name.upper() for name in names}:
                    wrong.append(found)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 8 * 300
    assert max(seen) <= 50
    assert not wrong
    wait_for(lambda: shelf.resident.used_bytes <= 50)


def test_threads_with_more_adapters_than_fit_get_the_right_answers(mini: LoadedModel, tmp_path: Path) -> None:
    """The traffic of ``benchmarks/residency.py`` in small: real adapters, loaded and dropped all the time."""
    write_adapters(mini.name, mini.family.name, dict(mini.description.linear_shapes), tmp_path, 12)
    attached = AttachedAdapters(mini)
    budget = 4 * attached.attach("a0", tmp_path / "a0").weights.nbytes
    attached.detach_all()
    attached = AttachedAdapters(mini, lambda name: tmp_path / name, budget)
    traffic = Traffic(attached, adapters=12, requests=60)
    traffic.ask_each_alone()
    assert len(set(traffic.expected.values())) > 6, "the adapters answer differently"
    traffic.run(threads=3)
    assert (traffic.done, traffic.wrong) == (60, 0)
    assert 0 < traffic.most_bytes <= budget
    attached.detach_all()


def test_loading_leaves_nothing_behind(mini: LoadedModel, tmp_path: Path) -> None:
    """safetensors' own ``safe_open`` loses 56 bytes with every tensor it gives; reading the file whole does not."""
    adapter = read_adapter(write_random_adapter(mini, tmp_path / "a"), "a")

    def load(times: int) -> None:
        for _ in range(times):
            load_weights(adapter, torch.float32, "cpu")
        gc.collect()

    tracemalloc.start()
    try:
        load(30)  # whatever is made once and kept
        before, _ = tracemalloc.get_traced_memory()
        load(100)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / (100 * 2 * len(adapter.files.sites)) < 10, "bytes kept per tensor"
