"""The store: atomic, versioned, and one broken entry never hides the others."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.store_stress import stress
from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest
from lorax_vlm.adapters.names import NameRecord
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.records import NameRecords
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import AdapterExists, AdapterNameError, AdapterNotFound, DamagedAdapter
from lorax_vlm.skills import answer, caption

MANIFEST = Manifest(name="one", skill=caption("concise"), base=None, trained=True, rank=8)


def test_add_get_list_remove(store: AdapterStore, adapter_folder: Path) -> None:
    assert store.names() == []
    added = store.add("one", adapter_folder, MANIFEST)
    assert added == store.get("one")
    assert added.version == 1
    assert dataclasses.replace(added.manifest, files={}) == MANIFEST
    assert added.manifest.files[WEIGHTS_FILE].size_bytes == (adapter_folder / WEIGHTS_FILE).stat().st_size
    assert added.folder.name == added.manifest.digest
    assert (added.folder / WEIGHTS_FILE).read_bytes() == (adapter_folder / WEIGHTS_FILE).read_bytes()
    assert store.list() == ([added], [])
    assert "one" in store
    store.remove("one")
    assert store.list() == ([], [])
    assert not [path for path in store.root.rglob("*") if path.is_file() and path.name != ".lock"]


def test_taken_names_and_new_versions(store: AdapterStore, adapter_folder: Path) -> None:
    first = store.add("one", adapter_folder, MANIFEST)
    with pytest.raises(AdapterExists):
        store.add("one", adapter_folder, MANIFEST)
    second = store.add("one", adapter_folder, dataclasses.replace(MANIFEST, skill=caption("new")), replace=True)
    assert (second.version, second.manifest.skill.name) == (2, "new")
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
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "names", "objects"]
    assert len(list((store.root / "objects").iterdir())) == 1


@pytest.mark.parametrize(
    ("place", "content"),
    [
        ("record", ""),
        ("record", "[]"),
        ("record", '{"name": "b", "current": 1}'),
        ("record", '{"name": "b", "current": 9, "versions": [{"number": 1, "object": "DIGEST", "stored": ""}]}'),
        ("record", '{"name": "a", "current": 1, "versions": [{"number": 1, "object": "DIGEST", "stored": ""}]}'),
        ("record", '{"name": "b", "current": 1, "versions": [{"number": 1, "object": "../../../etc", "stored": ""}]}'),
        (
            "record",
            '{"name": "b", "current": 1, "versions": [{"number": 1, "object": "' + 64 * "0" + '", "stored": ""}]}',
        ),
        ("manifest", "{"),
        ("manifest", "[]"),
        ("manifest", '{"schema_version": 1}'),
        ("manifest", '{"schema_version": 2, "name": 5}'),
    ],
)
def test_a_broken_entry_is_listed_and_hides_nothing(
    store: AdapterStore, adapter_folder: Path, place: str, content: str
) -> None:
    for name in ("a", "b", "c"):
        store.add(name, adapter_folder, dataclasses.replace(MANIFEST, name=name))
    stored = store.get("b")
    path = store.root / "names" / "b.json" if place == "record" else stored.folder / MANIFEST_FILE
    path.write_text(content.replace("DIGEST", stored.folder.name))
    good, broken = store.list()
    assert [entry.name for entry in good] == ["a", "c"]
    assert [entry.name for entry in broken] == ["b"]
    with pytest.raises(DamagedAdapter, match="'b'"):
        store.get("b")
    report = store.verify()
    assert len(report.problems) == 1
    assert "b" in report.problems[0]
    store.remove("b")
    assert store.names() == ["a", "c"]
    assert store.verify().problems == ()


def test_stray_files_are_ignored(store: AdapterStore, adapter_folder: Path) -> None:
    store.add("one", adapter_folder, MANIFEST)
    (store.root / "notes.txt").write_text("hello")
    (store.root / ".writing-abandoned").mkdir()
    (store.root / "empty").mkdir()
    (store.root / "names" / "not a name.json").write_text("{}")
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
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION
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
        assert store.read("one")[1].ranks == [8]
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
    assert store.record("one").numbers == list(range(1, 21))
    assert len(list((store.root / "objects").iterdir())) == 1, "equal versions are kept once"
    assert store.read("one")[1].ranks == [8]


# --- versions, aliases, tags ------------------------------------------------------------------------------------------


@pytest.fixture
def three(store: AdapterStore, adapter_folder: Path) -> AdapterStore:
    """One adapter in three versions that say ``v1``, ``v2``, ``v3``."""
    for style in ("v1", "v2", "v3"):
        store.add("one", adapter_folder, dataclasses.replace(MANIFEST, skill=caption(style)), replace=True)
    return store


def test_versions_are_read_by_number_and_alias(three: AdapterStore) -> None:
    three.set_alias("one", "stable", 2)
    styles = {name: three.get(name).manifest.skill.name for name in ("one", "one@1", "one@2", "one@3", "one@stable")}
    assert styles == {"one": "v3", "one@1": "v1", "one@2": "v2", "one@3": "v3", "one@stable": "v2"}
    assert three.get("one@stable").aliases == ("stable",)
    for wanted in ("one@4", "one@nothing", "one@0"):
        with pytest.raises(AdapterNotFound, match=r"one@1, one@2, one@3, one@stable"):
            three.get(wanted)
    three.drop_alias("one", "stable")
    with pytest.raises(AdapterNotFound):
        three.get("one@stable")
    with pytest.raises(AdapterNotFound):
        three.drop_alias("one", "stable")


def test_rollback_keeps_later_versions(three: AdapterStore, adapter_folder: Path) -> None:
    assert three.rollback("one").version == 2
    assert three.rollback("one", 1).manifest.skill.name == "v1"
    with pytest.raises(AdapterNotFound):
        three.rollback("one")
    with pytest.raises(AdapterNotFound):
        three.rollback("one", 7)
    assert three.get("one").version == 1, "a refusal changes nothing"
    assert three.rollback("one", 3).manifest.skill.name == "v3"
    three.rollback("one")
    added = three.add("one", adapter_folder, dataclasses.replace(MANIFEST, skill=caption("v4")), replace=True)
    assert (added.version, three.record("one").numbers) == (4, [1, 2, 3, 4])


def test_aliases_and_tags_are_names(three: AdapterStore) -> None:
    for wrong in ("3", "a/b", "", ".."):
        with pytest.raises(AdapterNameError):
            three.set_alias("one", wrong)
        if wrong != "3":
            with pytest.raises(AdapterNameError):
                three.tag("one", add=[wrong])
    assert three.tag("one", add=["zoo", "art"]).tags == ("art", "zoo")
    assert three.tag("one", add=["art"], remove=["zoo", "never"]).tags == ("art",)


def test_search(store: AdapterStore, adapter_folder: Path) -> None:
    for name, skill in (("cats", caption("concise")), ("dogs", answer("counting")), ("birds", answer(""))):
        manifest = dataclasses.replace(MANIFEST, name=name, skill=skill, training={"data": f"{name} of COCO"})
        store.add(name, adapter_folder, manifest)
    store.tag("dogs", add=["good"])

    def found(*arguments: object, **options: object) -> list[str]:
        return [adapter.name for adapter in store.search(*arguments, **options)]

    assert found() == ["birds", "cats", "dogs"]
    assert found("COCO count") == ["dogs"]
    assert found("answers") == ["birds", "dogs"]
    assert found(task="vqa") == found(task="answer") == ["birds", "dogs"]
    assert found(task="captioning") == found(task="concise") == ["cats"]
    assert found(task="vqa", tags=["good"]) == ["dogs"]
    assert found(base="blip2-opt-mini") == []


# --- whole store ------------------------------------------------------------------------------------------------------


def test_verify_finds_every_changed_byte(three: AdapterStore) -> None:
    report = three.verify()
    assert (report.versions, report.problems, report.leftovers) == (3, (), ())
    size = sum(path.stat().st_size for path in (three.root / "objects").rglob("*") if path.is_file())
    assert report.size_bytes == size
    for version, file in ((1, WEIGHTS_FILE), (2, "adapter_config.json"), (3, MANIFEST_FILE)):
        path = three.get(f"one@{version}").folder / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    problems = three.verify().problems
    assert [problem.split(":")[0] for problem in problems] == ["one@1", "one@2", "one@3"]
    with pytest.raises(DamagedAdapter, match=r"adapter_model\.safetensors was changed"):
        three.read("one@1")[1]


def test_clean_removes_what_nobody_refers_to(three: AdapterStore) -> None:
    (three.root / "objects" / ("f" * 64)).mkdir()
    old, busy, somebodys = (three.root / f".writing-{rest}" for rest in ("0" * 32, "1" * 32, "a-novel"))
    for folder in (old, busy, somebodys):
        folder.mkdir()
    for folder in (old, somebodys):
        os.utime(folder, (0, 0))
    assert len(three.verify().leftovers) == 2
    assert three.clean() == 2
    assert busy.is_dir(), "somebody may still be writing there"
    assert somebodys.is_dir(), "it is not called as a writer of ours calls it"
    assert three.verify().leftovers == ()
    assert three.get("one@1").manifest.skill.name == "v1"


@pytest.mark.timeout(120)
def test_processes_that_write_read_remove_and_are_killed(store: AdapterStore, adapter_folder: Path) -> None:
    """A short run of ``python -m benchmarks.store_stress``, which takes a minute with ten processes."""
    counts, killed = stress(store, adapter_folder, processes=4, seconds=6)
    assert killed > 0
    assert counts["add"] > 0
    store.clean()
    assert store.verify().problems == ()
    assert store.list()[1] == []


# --- what is damaged, changed, or no ordinary file --------------------------------------------------------------------


@pytest.mark.parametrize("left", [(), (MANIFEST_FILE,), ("adapter_config.json", MANIFEST_FILE), ("flipped",)])
def test_a_damaged_object_is_replaced_by_a_sound_one(
    store: AdapterStore, adapter_folder: Path, left: tuple[str, ...]
) -> None:
    """Half of it removed, or a bit turned over: adding the same adapter again makes it whole, with its other names."""
    first = store.add("one", adapter_folder, MANIFEST)
    store.add("two", adapter_folder, MANIFEST)
    for file in list(first.folder.iterdir()):
        if left == ("flipped",):
            file.write_bytes(file.read_bytes()[:-1] + b"\0")
        elif file.name not in left:
            file.unlink()
    assert store.verify().problems
    again = store.add("one", adapter_folder, MANIFEST, replace=True)
    assert again.folder == first.folder
    assert store.verify().problems == ()
    assert store.read("two")[1].sites == store.read("one@1")[1].sites


@pytest.mark.parametrize("kind", ["link", "file"])
def test_what_is_no_folder_in_the_place_of_one_is_replaced(
    store: AdapterStore, adapter_folder: Path, tmp_path: Path, kind: str
) -> None:
    folder = store.add("one", adapter_folder, MANIFEST).folder
    shutil.rmtree(folder)
    if kind == "link":
        folder.symlink_to(tmp_path / "gone")
    else:
        folder.write_text("")
    store.add("two", adapter_folder, MANIFEST)
    assert not folder.is_symlink()
    assert store.verify().problems == ()
    assert store.read("one")[1].sites


def test_a_removal_that_is_cut_short_leaves_nothing_that_is_taken_for_whole(
    store: AdapterStore, adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add("one", adapter_folder, MANIFEST)

    def dying(path: Path, **_: object) -> None:
        next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("lorax_vlm.adapters.objects.shutil.rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        store.remove("one")
    monkeypatch.undo()
    again = AdapterStore(store.root)
    assert again.names() == []
    again.add("one", adapter_folder, MANIFEST)
    again.clean()
    assert again.verify().problems == again.verify().leftovers == ()
    assert again.read("one")[1].sites


@pytest.mark.parametrize("entry", ["prompt", "labels", "files", "trained", "base"])
def test_a_changed_manifest_is_not_used(store: AdapterStore, adapter_folder: Path, entry: str) -> None:
    path = store.add("one", adapter_folder, dataclasses.replace(MANIFEST, prompt="a")).folder / MANIFEST_FILE
    record = json.loads(path.read_text())
    record[entry] = {"prompt": "b", "labels": ["x"], "files": {}, "trained": False, "base": None}[entry]
    path.write_text(json.dumps({**record, "style": "changed"}))
    for read in (store.get, store.read, store.read_bytes):
        with pytest.raises(DamagedAdapter, match=r"exchange\.json was changed"):
            read("one")


def test_what_is_stored_is_what_was_checked(store: AdapterStore, adapter_folder: Path) -> None:
    """Its files are exchanged for others between the check and the copy."""
    checked = read_adapter(adapter_folder, "one")
    (adapter_folder / WEIGHTS_FILE).write_bytes(b"other")
    stored = store.add_all([Addition("one", checked, MANIFEST)])[0]
    assert store.verify().problems == ()
    assert (stored.folder / WEIGHTS_FILE).read_bytes() == checked.data


@pytest.mark.parametrize("file", ["adapter_config.json", WEIGHTS_FILE, "exchange.sig", "exchange.seen"])
@pytest.mark.parametrize("kind", ["link", "device", "pipe", "folder", "loop"])
@pytest.mark.timeout(30)
def test_only_ordinary_files_are_taken_in(
    store: AdapterStore, adapter_folder: Path, tmp_path: Path, file: str, kind: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a private key")
    path = adapter_folder / file
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": secret, "device": "/dev/zero", "loop": path}[kind])
    with contextlib.suppress(DamagedAdapter):
        store.add("one", adapter_folder, MANIFEST)
    assert store.names() == (["one"] if file == "exchange.sig" else [])
    assert not any(b"private key" in found.read_bytes() for found in store.root.rglob("*") if found.is_file())
    assert store.verify().problems == ()


def test_the_links_of_the_hub_cache_are_followed(store: AdapterStore, adapter_folder: Path, tmp_path: Path) -> None:
    """What ``snapshot_download`` returns; the same links anywhere else lead away."""
    model = tmp_path / "models--a--b"
    snapshot, blobs = model / "snapshots" / "0a1b", model / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(adapter_folder, blobs)
    for file in (WEIGHTS_FILE, "adapter_config.json"):
        (snapshot / file).symlink_to(f"../../blobs/{file}")
    stored = store.add("one", snapshot, MANIFEST)
    assert not any(path.is_symlink() for path in stored.folder.iterdir())
    other = shutil.copytree(model, tmp_path / "other", symlinks=True)
    (other / "blobs").rename(other / "files")
    for file in (WEIGHTS_FILE, "adapter_config.json"):
        (other / "snapshots" / "0a1b" / file).unlink()
        (other / "snapshots" / "0a1b" / file).symlink_to(f"../../files/{file}")
    with pytest.raises(DamagedAdapter, match="it is a link"):
        store.add("two", other / "snapshots" / "0a1b", MANIFEST)


def test_a_full_disk_is_said_as_one(adapter_folder: Path, tmp_path: Path) -> None:
    """And nothing is left of what did not fit; a limit for any file stands for the disk."""
    script = f"""
import resource, signal, sys
from pathlib import Path
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import PathError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
store = AdapterStore({str(tmp_path / "full")!r})
try:
    store.add("one", Path({str(adapter_folder)!r}), Manifest("one", None, None, True))
except PathError as error:
    print(error)
print(store.names(), [path.name for path in store.root.iterdir()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert done.stdout.splitlines()[-1] == "[] []"


def test_damage_is_not_forgotten_when_the_record_becomes_unreadable(three: AdapterStore, monkeypatch) -> None:
    (three.get("one@2").folder / WEIGHTS_FILE).write_bytes(b"changed")
    original, asked = NameRecords.read, []

    def read(self, name: str) -> NameRecord:
        asked.append(name)
        if len(asked) > 1:  # what was readable when the check began
            raise DamagedAdapter(name, "there", ["its record was cut off"])
        return original(self, name)

    monkeypatch.setattr(NameRecords, "read", read)
    assert any(problem.startswith("one@2") for problem in three.verify().problems)
