"""The only door to a base: who holds one keeps it, who needs room waits, and nobody loads one twice."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import CheckpointError, OutOfMemoryForecast
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.bases import Bases

OPT, FLAN, VILT = "blip2-opt-mini", "blip2-flan-mini", "vilt-mini"


class Loads:
    """Loads miniatures, and says when it began and ended."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.hold: dict[str, threading.Event] = {}
        self.began = threading.Semaphore(0)

    def __call__(self, entry: CatalogEntry) -> LoadedModel:
        self.names.append(entry.name)
        self.began.release()
        if entry.name in self.hold:
            assert self.hold[entry.name].wait(20)
        return load_model(entry.name)


def run(*work: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    return threads


def needed(*names: str) -> int:
    bases = Bases({}, AdapterStore())
    return sum(bases.needed_bytes(get_model_entry(name)) or 0 for name in names)


def test_of_several_threads_one_loads_and_others_use_another_base_meanwhile() -> None:
    load = Loads()
    bases = Bases({}, AdapterStore(), load=load)
    with bases.use(VILT):
        assert load.began.acquire(timeout=20)
    load.hold[OPT] = threading.Event()
    found: list[LoadedModel] = []

    def use() -> None:
        with bases.use(OPT) as engine:
            found.append(engine.base)

    threads = run(use, use, use)
    assert load.began.acquire(timeout=20)
    with bases.use(VILT) as other:  # loading opt does not stop this
        assert other.entry.name == VILT
    assert not found
    load.hold[OPT].set()
    for thread in threads:
        thread.join(20)
    assert load.names.count(OPT) == 1
    assert len(found) == 3
    assert found[0] is found[1] is found[2]


def test_what_is_used_does_not_leave_and_who_needs_room_waits() -> None:
    load = Loads()
    bases = Bases({}, AdapterStore(), load=load, memory_budget_bytes=needed(OPT) + 1000)
    done = threading.Event()

    def use_the_other() -> None:
        with bases.use(VILT):
            done.set()

    with bases.use(OPT) as engine:
        threads = run(use_the_other)
        assert not done.wait(0.3), "there is no room for two"
        assert bases.loaded == [OPT]
        assert engine.base.model is not None
        with pytest.raises(OutOfMemoryForecast), bases.use(VILT):  # who holds one must not wait for room
            pass
    assert done.wait(20)
    for thread in threads:
        thread.join(20)
    assert bases.loaded == [VILT]


def test_a_load_that_fails_is_tried_again_by_the_next(tmp_path: Path) -> None:
    fail = [True]

    def load(entry: CatalogEntry) -> LoadedModel:
        if fail:
            fail.clear()
            raise CheckpointError(entry.name, ["it is on fire"])
        return load_model(entry.name)

    bases = Bases({}, AdapterStore(), load=load, memory_budget_bytes=needed(OPT))
    with pytest.raises(CheckpointError, match="on fire"), bases.use(OPT):
        pass
    with bases.use(OPT) as engine:
        assert engine.entry.name == OPT


def test_the_least_recently_used_leaves_and_only_while_nobody_uses_it() -> None:
    bases = Bases({}, AdapterStore(), memory_budget_bytes=needed(OPT, FLAN))
    for name in (OPT, FLAN, OPT, VILT):
        with bases.use(name):
            pass
    assert bases.loaded == [OPT, VILT]
    with bases.use(VILT):
        bases.clear()
        assert bases.loaded == [VILT]


def test_what_loading_tells_stays_known(mini: LoadedModel) -> None:
    told = dataclasses.replace(mini.entry, name="thing", source="somebody/thing", miniature=False)
    bases = Bases({}, AdapterStore(), load=lambda entry: dataclasses.replace(mini, entry=told))
    assert bases.entry("somebody/thing").family == ""
    assert bases.described("somebody/thing") == told
    bases.clear()
    assert bases.entry("somebody/thing") == told
    assert bases.model_of("somebody/thing") == "somebody/thing"
