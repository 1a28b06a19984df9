"""The store: atomic, versioned, and one broken entry never hides the others."""

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lorax_vlm.adapters.files import WEIGHTS_FILE
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import AdapterExists, AdapterNameError, AdapterNotFound, DamagedAdapter

MANIFEST = Manifest(name="one", task="captioning", style="concise", base=None, trained=True, rank=8)


def test_add_get_list_remove(store: AdapterStore, adapter_folder: Path) -> None:
    assert store.names() == []
    added = store.add("one", adapter_folder, MANIFEST)
    assert added == store.get("one")
    assert added.version == 1
    assert added.manifest == MANIFEST
    assert (added.folder / WEIGHTS_FILE).read_bytes() == (adapter_folder / WEIGHTS_FILE).read_bytes()
    assert store.list() == ([added], [])
    assert "one" in store
    store.remove("one")
    assert store.list() == ([], [])
    assert list(store.root.iterdir()) == []


def test_taken_names_and_new_versions(store: AdapterStore, adapter_folder: Path) -> None:
    first = store.add("one", adapter_folder, MANIFEST)
    with pytest.raises(AdapterExists):
        store.add("one", adapter_folder, MANIFEST)
    second = store.add("one", adapter_folder, dataclasses.replace(MANIFEST, style="new"), replace=True)
    assert (second.version, second.manifest.style) == (2, "new")
    assert first.folder.is_dir(), "the former version is kept"


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "../x",
        "/etc",
        "a..b",
        ".hidden",
        "-x",
        "x" * 97,
        "a\0b",
        "a b",
        "é",
        "end.",
        "base",
    ],
)
def test_names_that_could_leave_the_store(store: AdapterStore, adapter_folder: Path, name: str) -> None:
    before = sorted(store.root.parent.rglob("*"))
    for call in (
        lambda: store.get(name),
        lambda: store.add(name, adapter_folder, MANIFEST),
        lambda: store.remove(name),
        lambda: name in store,
    ):
        with pytest.raises(AdapterNameError, match="cannot be an adapter's name"):
            call()
    assert sorted(store.root.parent.rglob("*")) == before


def test_missing_adapters_list_what_is_there(store: AdapterStore, adapter_folder: Path) -> None:
    store.add("one", adapter_folder, MANIFEST)
    for call in (store.get, store.remove):
        with pytest.raises(AdapterNotFound, match="There: one"):
            call("two")


def test_a_damaged_source_changes_nothing(store: AdapterStore, adapter_folder: Path) -> None:
    good = store.add("one", adapter_folder, MANIFEST)
    (adapter_folder / WEIGHTS_FILE).write_bytes(b"broken")
    with pytest.raises(DamagedAdapter):
        store.add("one", adapter_folder, MANIFEST, replace=True)
    assert store.get("one") == good
    assert [path.name for path in store.root.iterdir()] == ["one"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("current", "0009"),
        ("current", "../../../etc"),
        ("current", ""),
        (f"versions/0001/{MANIFEST_FILE}", "{"),
        (f"versions/0001/{MANIFEST_FILE}", "[]"),
        (f"versions/0001/{MANIFEST_FILE}", '{"schema_version": 99}'),
        (f"versions/0001/{MANIFEST_FILE}", '{"schema_version": 1, "name": 5}'),
    ],
)
def test_a_broken_entry_is_listed_and_hides_nothing(
    store: AdapterStore, adapter_folder: Path, file: str, content: str
) -> None:
    for name in ("a", "b", "c"):
        store.add(name, adapter_folder, dataclasses.replace(MANIFEST, name=name))
    (store.root / "b" / file).write_text(content)
    good, broken = store.list()
    assert [entry.name for entry in good] == ["a", "c"]
    assert [entry.name for entry in broken] == ["b"]
    with pytest.raises(DamagedAdapter, match="'b'"):
        store.get("b")
    store.remove("b")
    assert store.names() == ["a", "c"]


def test_stray_files_are_ignored(store: AdapterStore, adapter_folder: Path) -> None:
    store.add("one", adapter_folder, MANIFEST)
    (store.root / "notes.txt").write_text("hello")
    (store.root / ".writing-abandoned").mkdir()
    (store.root / "empty").mkdir()
    assert [entry.name for entry in store.list()[0]] == ["one"]


def test_export_is_a_plain_directory(store: AdapterStore, adapter_folder: Path, tmp_path: Path) -> None:
    store.add("one", adapter_folder, MANIFEST)
    target = store.export("one", tmp_path / "out" / "one")
    assert {path.name for path in target.iterdir()} == {"adapter_config.json", WEIGHTS_FILE, MANIFEST_FILE}
    with pytest.raises(AdapterExists):
        store.export("one", target)
    (tmp_path / "empty").mkdir()
    store.export("one", tmp_path / "empty")


def test_manifest_round_trip(store: AdapterStore, adapter_folder: Path) -> None:
    stored = store.add("one", adapter_folder, MANIFEST)
    text = (stored.folder / MANIFEST_FILE).read_text()
    assert json.loads(text)["schema_version"] == 1
    assert stored.manifest.to_json() == text


def write_for_ever(root: str, source: str, ready) -> None:
    store = AdapterStore(root)
    ready.set()
    while True:
        store.add("one", Path(source), MANIFEST, replace=True)


def test_killed_writers_never_lose_the_adapter(store: AdapterStore, adapter_folder: Path) -> None:
    store.add("one", adapter_folder, MANIFEST)
    context = multiprocessing.get_context("fork")
    for round_ in range(8):
        ready = context.Event()
        writer = context.Process(target=write_for_ever, args=(str(store.root), str(adapter_folder), ready))
        writer.start()
        ready.wait(30)
        time.sleep(0.01 + 0.013 * round_)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        assert store.files("one").ranks == [8]
        assert store.list()[1] == []


def write_some(root: str, source: str, count: int) -> None:
    store = AdapterStore(root)
    for _ in range(count):
        store.add("one", Path(source), MANIFEST, replace=True)


def test_concurrent_writers_each_get_a_version(store: AdapterStore, adapter_folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_some, args=(str(store.root), str(adapter_folder), 5)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    versions = sorted(path.name for path in (store.root / "one" / "versions").iterdir())
    assert versions == [f"{number:04d}" for number in range(1, 21)]
    assert store.files("one").ranks == [8]
