"""Bundles: the same adapter in and out, and nothing else ever comes in, or gets out of the store."""

import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lorax_vlm.adapters.integrity import LIMITS, SIGNATURE_FILE, hash_file
from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages, read_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterExists, AdapterNameError, DamagedAdapter, LoraxError, PathError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.sharing.archive import read_archive, write_archive
from lorax_vlm.sharing.bundle import pack, receive, unpacked
from lorax_vlm.skills import caption
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.models.test_fingerprint import HOSTILE_HEADERS

FILES = (MANIFEST_FILE, CONFIG_FILE, WEIGHTS_FILE)


@pytest.fixture(scope="module")
def sealed(shared_mini: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> StoredAdapter:
    """A small adapter in a store of its own."""
    folder = write_random_adapter(shared_mini, tmp_path_factory.mktemp("source") / "light", "light")
    manifest = write_manifest(shared_mini, folder)
    return AdapterStore(tmp_path_factory.mktemp("sealed")).add("light", folder, manifest)


@pytest.fixture
def bundle(sealed: StoredAdapter, tmp_path: Path) -> Path:
    return pack(sealed, tmp_path / "light.lorax")


def test_in_and_out(bundle: Path, sealed: StoredAdapter, store: AdapterStore) -> None:
    with unpacked(bundle) as folder:
        received = receive(store, folder)
        for file in FILES:
            assert (folder / file).read_bytes() == (sealed.folder / file).read_bytes()
    assert not folder.exists()
    assert received.manifest == sealed.manifest
    assert received.folder.name == sealed.folder.name, "known by the same digest"
    with unpacked(bundle) as folder:
        with pytest.raises(AdapterExists):
            receive(store, folder)
        assert receive(store, folder, "other").name == "other"
        with pytest.raises(AdapterNameError):
            receive(store, folder, "../other")


def test_the_same_adapter_is_the_same_bytes(bundle: Path, sealed: StoredAdapter, tmp_path: Path) -> None:
    os.utime(sealed.folder / WEIGHTS_FILE)
    assert pack(sealed, tmp_path / "again.lorax").read_bytes() == bundle.read_bytes()
    with pytest.raises(AdapterExists):
        pack(sealed, bundle)


def test_a_changed_adapter_is_not_packed(bundle: Path, store: AdapterStore, tmp_path: Path) -> None:
    with unpacked(bundle) as folder:
        stored = receive(store, folder)
    (stored.folder / WEIGHTS_FILE).write_bytes(b"other")
    with pytest.raises(DamagedAdapter, match="was changed"):
        pack(stored, tmp_path / "x.lorax")
    assert not (tmp_path / "x.lorax").exists()


# --- hostile bundles --------------------------------------------------------------------------------------------------


def archive(entries: list[tuple[zipfile.ZipInfo | str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """By the standard library, in the form of a bundle but for what a test changes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in entries:
            entry = name
            if isinstance(entry, str):
                entry = zipfile.ZipInfo(entry, (1980, 1, 1, 0, 0, 0))
                entry.external_attr, entry.compress_type = (stat.S_IFREG | 0o644) << 16, compression
            with made.open(entry, "w", force_zip64=True) as out:
                out.write(content)
    return buffer.getvalue()


def test_a_bundle_is_a_zip_archive_of_the_standard_library(bundle: Path, sealed: StoredAdapter) -> None:
    assert bundle.read_bytes() == archive(list(contents(sealed.folder).items()))


@pytest.mark.parametrize("limit", [None, 3000, 1000, 100, 1], ids=lambda limit: f"64 bits from {limit or 2**31}")
def test_large_archives_are_those_of_the_standard_library(limit: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit is not None:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
        monkeypatch.setattr("lorax_vlm.sharing.archive.ZIP64_LIMIT", limit)
    files = {MANIFEST_FILE: b"a" * 50, CONFIG_FILE: b"", WEIGHTS_FILE: b"b" * 2000}
    own = io.BytesIO()
    write_archive(own, [(name, [content[:30], content[30:]]) for name, content in files.items()])
    assert own.getvalue() == archive(list(files.items()))
    own.seek(0)
    assert {name: b"".join(blocks) for name, blocks in read_archive(own, LIMITS)} == files


def contents(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in FILES}


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.external_attr = (kind | 0o777) << 16
    return info


NAMES = (
    "../evil", "../../evil", "/etc/evil", "//evil", "C:\\evil", "..\\evil", "a/../../evil", "./exchange.json",
    "evil/",
    "exchange.json/", "EXCHANGE.JSON", "exchange.json ", " exchange.json", "exchange\u200b.json", "exchange.json\u202e",
    "ex\u0441hange.json", "exchange.json::$DATA", "con", ".lock",
    "names/light.json", "objects/x", "a" * 5000, "\u2215etc",
    "adapter_model.bin", "adapter_model.pkl", "pytorch_model.bin", "setup.py", "__init__.py", "README.md", "~", "$HOME",
)  # fmt: skip


def extra_entries() -> dict[str, Callable[[dict[str, bytes]], bytes]]:
    return {
        f"an entry called {name[:30]!r}": lambda files, name=name: archive([*files.items(), (name, b"x")])
        for name in NAMES
    }


def replaced_kinds() -> dict[str, Callable[[dict[str, bytes]], bytes]]:
    kinds = {
        "link": stat.S_IFLNK,
        "pipe": stat.S_IFIFO,
        "device": stat.S_IFCHR,
        "folder": stat.S_IFDIR,
        "socket": stat.S_IFSOCK,
    }
    return {
        f"{file} as a {kind}": lambda files, file=file, mode=mode: archive(
            [*((n, c) for n, c in files.items() if n != file), (special(file, mode), b"/etc/passwd")]
        )
        for kind, mode in kinds.items()
        for file in FILES
    }


def patched(files: dict[str, bytes], old: bytes, new: bytes) -> bytes:
    """Change the archive's own structures, everywhere."""
    return archive(list(files.items())).replace(old, new)


def with_size(files: dict[str, bytes], size: int) -> bytes:
    """A table of contents that lies about a size."""
    data = bytearray(archive(list(files.items())))
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", size)
    return bytes(data)


def encrypted(files: dict[str, bytes]) -> bytes:
    data = bytearray(archive(list(files.items())))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(mark)
        while place >= 0:
            data[place + offset] |= 1
            place = data.find(mark, place + 4)
    return bytes(data)


def commented(data: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", 6) + b"hidden"


ARCHIVES: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    **extra_entries(),
    **replaced_kinds(),
    **{f"without {f}": lambda files, f=f: archive([(n, c) for n, c in files.items() if n != f]) for f in FILES},
    **{f"{file} twice": lambda files, file=file: archive([*files.items(), (file, files[file])]) for file in FILES},
    "compressed": lambda files: archive(list(files.items()), zipfile.ZIP_DEFLATED),
    "compressed with LZMA": lambda files: archive(list(files.items()), zipfile.ZIP_LZMA),
    "a bomb": lambda files: archive([*files.items(), (SIGNATURE_FILE, b"\0" * 30_000_000)], zipfile.ZIP_DEFLATED),
    "an oversize configuration": lambda files: archive(list({**files, CONFIG_FILE: b" " * 1_100_000}.items())),
    "an oversize manifest": lambda files: archive(list({**files, MANIFEST_FILE: b" " * 8_500_000}.items())),
    "a size that is too large": lambda files: with_size(files, 2**31),
    "a size that is too small": lambda files: with_size(files, 1),
    "encrypted": encrypted,
    "empty": lambda files: b"",
    "no archive": lambda files: b"hello",
    "an empty archive": lambda files: archive([]),
    "a pickle": lambda files: pickle.dumps({"a": 1}),
    "a tar file's beginning": lambda files: b"exchange.json\0" * 40,
    "cut in half": lambda files: archive(list(files.items()))[:3000],
    "without its table": lambda files: archive(list(files.items()))[:-30],
    "something before it": lambda files: b"#!/bin/sh\n" + archive(list(files.items())),
    "something behind it": lambda files: archive(list(files.items())) + b"\0",
    "a comment": lambda files: commented(archive(list(files.items()))),
    "something between two files": lambda files: archive(list(files.items())).replace(b"PK\3\4", b"hiddenPK\3\4"),
    "something before the table": lambda files: archive(list(files.items())).replace(b"PK\1\2", b"hiddenPK\1\2", 1),
    "another order": lambda files: archive(list(reversed(files.items()))),
    "another date": lambda files: archive(list(files.items())).replace(b"\x21\0", b"\x22\0"),
    "an archive in an archive": lambda files: archive([(MANIFEST_FILE, archive(list(files.items())))]),
    "a second table": lambda files: archive(list(files.items())) + archive(list(files.items()))[-22:],
    "a name that does not match its table": lambda files: archive(list(files.items())).replace(
        b"adapter_config.json", b"adapter_konfig.json", 1
    ),
}  # fmt: skip


# --- damaged contents, sealed again with right digests ----------------------------------------------------------------


def configured(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[CONFIG_FILE] = json.dumps({**json.loads(files[CONFIG_FILE]), **changes}).encode()

    return change


def weighted(change: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def edit(files: dict[str, bytes]) -> None:
        path = Path(os.environ["LORAX_VLM_HOME"]).parent / "edited.safetensors"
        path.write_bytes(files[WEIGHTS_FILE])
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        files[WEIGHTS_FILE] = path.read_bytes()

    return edit


def first(tensors: dict, factor: str = "A") -> str:
    return next(name for name in sorted(tensors) if f"lora_{factor}" in name)


def fill(value: float) -> Callable[[dict], None]:
    return lambda tensors: tensors[first(tensors)].__setitem__((0, 0), value)


RECORDS = {
    f"configuration with {key} = {str(value)[:30]}": configured(**{key: value})
    for key, value in [
        ("r", -8), ("r", 0), ("r", 2**40), ("r", "8"), ("r", None), ("r", True), ("r", 8.5), ("lora_alpha", 0),
        ("lora_alpha", "x"), ("lora_alpha", 1e400), ("target_modules", None), ("target_modules", "("),
        ("target_modules", {"a": 1}), ("target_modules", [5]), ("rank_pattern", {"q": -1}), ("rank_pattern", [1]),
        ("alpha_pattern", {"q": 0}), ("alpha_pattern", {"(": 1}), ("peft_type", "ADALORA"), ("peft_type", None),
        ("use_dora", True), ("lora_bias", True), ("bias", "all"), ("modules_to_save", ["lm_head"]),
        ("modules_to_save", True),
        ("init_lora_weights", "pissa"), ("layer_replication", [[0, 4]]), ("trainable_token_indices", [1]),
        ("megatron_config", {"a": 1}), ("unknown_option", 1), ("exclude_modules", "("), ("arrow_config", {"a": 1}),
    ]
}  # fmt: skip
CONTENTS: dict[str, Callable[[dict[str, bytes]], None]] = {
    **RECORDS,
    **{
        f"configuration: {text!r}": lambda files, text=text: files.update({CONFIG_FILE: text})
        for text in (b"", b"[]", b"null", b"{", b"\xff", b"3")
    },
    **{
        f"weights: {name}": lambda files, data=data: files.update({WEIGHTS_FILE: data})
        for name, data in HOSTILE_HEADERS.items()
    },
    "weights that are a pickle": lambda files: files.update({WEIGHTS_FILE: pickle.dumps({"a": 1})}),
    "NaN": weighted(fill(float("nan"))),
    "infinity": weighted(fill(float("inf"))),
    "minus infinity": weighted(fill(float("-inf"))),
    "no B": weighted(lambda t: t.pop(first(t, "B"))),
    "no A": weighted(lambda t: t.pop(first(t))),
    "no tensors": weighted(lambda t: t.clear()),
    "a tensor of something else": weighted(lambda t: t.update(other=t[first(t)])),
    "an embedding": weighted(lambda t: t.update({"base_model.model.embed.lora_embedding_A": t[first(t)].copy()})),
    "a head without a promise": weighted(lambda t: t.update({"base_model.model.classifier.3.weight": t[first(t)]})),
    "ranks that do not pair": weighted(lambda t: t.update({first(t): t[first(t)][:2].copy()})),
    "a vector": weighted(lambda t: t.update({first(t): t[first(t)][0].copy()})),
    "whole numbers": weighted(lambda t: t.update({first(t): t[first(t)].astype("int32")})),
    "an empty matrix": weighted(lambda t: t.update({first(t): t[first(t)][:0].copy()})),
}  # fmt: skip
MANIFESTS: dict[str, Callable[[dict], None]] = {
    "a wrong digest": lambda m: m["files"][WEIGHTS_FILE].update(sha256="0" * 64),
    "a wrong size": lambda m: m["files"][WEIGHTS_FILE].update(size_bytes=1),
    "a file that is not there": lambda m: m["files"].update(other={"size_bytes": 1, "sha256": "0" * 64}),
    "a file outside": lambda m: m["files"].update({"../../etc/passwd": {"size_bytes": 1, "sha256": "0" * 64}}),
    "no files": lambda m: m.update(files={}),
    "a name with a path": lambda m: m.update(name="../../evil"),
    "a name with a null": lambda m: m.update(name="a\0b"),
    "a name of letters that look alike": lambda m: m.update(name="l\u0456ght"),
    "a name from right to left": lambda m: m.update(name="\u202elight"),
    "a reserved name": lambda m: m.update(name="base"),
    "an empty name": lambda m: m.update(name=""),
    "another version": lambda m: m.update(schema_version=5),
    "an unknown entry": lambda m: m.update(surprise=1),
    "a negative rank": lambda m: m.update(rank=-1),
    "trained in words": lambda m: m.update(trained="yes"),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def offer(data: bytes, tmp_path: Path, store: AdapterStore, sealed: StoredAdapter) -> None:
    """Take a bundle in, which must fail with our error and leave everything as it was."""
    path = tmp_path / "in" / "hostile.lorax"
    path.parent.mkdir()
    path.write_bytes(data)
    store.add("precious", sealed.folder, sealed.manifest)
    before, around = snapshot(store.root), sorted(tmp_path.rglob("*"))

    def take() -> None:
        with unpacked(path) as folder:
            receive(store, folder)

    with pytest.raises(LoraxError) as caught:
        take()
    assert str(caught.value)
    assert snapshot(store.root) == before
    assert sorted(tmp_path.rglob("*")) == around
    assert store.verify().problems == ()


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_hostile_archives(make: Callable, sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    offer(make(contents(sealed.folder)), tmp_path, store, sealed)


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
def test_hostile_contents_with_right_digests(
    change: Callable, sealed: StoredAdapter, store: AdapterStore, tmp_path: Path
) -> None:
    files = contents(sealed.folder)
    change(files)
    manifest = json.loads(files[MANIFEST_FILE])
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / "hashed").write_bytes(files[name])
        record = hash_file(tmp_path / "hashed")
        manifest["files"][name] = {"size_bytes": record.size_bytes, "sha256": record.sha256}
    files[MANIFEST_FILE] = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    offer(archive(list(files.items())), tmp_path, store, sealed)


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_hostile_manifests(change: Callable, sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    files = contents(sealed.folder)
    manifest = json.loads(files[MANIFEST_FILE])
    change(manifest)
    files[MANIFEST_FILE] = json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"
    offer(archive(list(files.items())), tmp_path, store, sealed)


def test_a_manifest_in_another_form_is_refused(sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    """It would be stored in the canonical form, and a signature of it would no longer hold."""
    files = contents(sealed.folder)
    files[MANIFEST_FILE] = json.dumps(json.loads(files[MANIFEST_FILE])).encode()
    offer(archive(list(files.items())), tmp_path, store, sealed)


@pytest.mark.parametrize("file", FILES)
def test_folders_with_links(file: str, sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sealed.folder, tmp_path / "linked"))
    (folder / file).rename(tmp_path / "elsewhere")
    (folder / file).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedAdapter, match="is no ordinary file"):
        receive(store, folder)
    assert store.names() == []


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@FUZZ
@given(position=st.floats(0, 1), flip=st.integers(1, 255), keep=st.floats(0.5, 1) | st.just(1.0))
def test_any_flipped_byte_or_cut(
    sealed: StoredAdapter, tmp_path_factory: pytest.TempPathFactory, position: float, flip: int, keep: float
) -> None:
    """No byte of a bundle is without meaning: with any other one, nothing of it is taken in."""
    scratch = tmp_path_factory.mktemp("fuzz")
    data = bytearray(archive(list(contents(sealed.folder).items())))
    data[int(position * (len(data) - 1))] ^= flip
    (scratch / "x.lorax").write_bytes(data[: int(len(data) * keep)])
    store = AdapterStore(scratch / "store")

    def take() -> None:
        with unpacked(scratch / "x.lorax") as folder:
            receive(store, folder)

    with pytest.raises(LoraxError):
        take()
    assert [path.name for path in scratch.iterdir()] == ["x.lorax"]


@pytest.mark.timeout(20)
def test_a_table_of_many_names_is_refused_at_once(tmp_path: Path) -> None:
    """It is not read: the first name, or the first byte that is not as it should be, is enough."""
    path = tmp_path / "many.lorax"
    path.write_bytes(archive([(f"{'n' * 80}{number}", b"") for number in range(40_000)]))
    with pytest.raises(DamagedAdapter) as caught, unpacked(path):
        pass
    assert len(str(caught.value)) < 1000


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 3,000 bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_is_no_damage(bundle: Path, sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    def unpack() -> None:
        with unpacked(bundle):
            pass

    around = sorted(tmp_path.iterdir())
    for write in (unpack, lambda: pack(sealed, tmp_path / "y.lorax")):
        with pytest.raises(PathError, match="too large"), full_disk():
            write()
    with unpacked(bundle) as folder:
        store.require_writable()
        with pytest.raises(PathError, match="too large"), full_disk():
            receive(store, folder)
    assert sorted(path for path in tmp_path.iterdir() if path != store.root) == around, "nothing is left"
    assert store.verify().leftovers == ()
    assert store.names() == []


def test_places_that_are_none(sealed: StoredAdapter, tmp_path: Path) -> None:
    with pytest.raises(PathError, match="it is a folder"):
        pack(sealed, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PathError):
        pack(sealed, tmp_path / "file" / "a.lorax")
    for path in (tmp_path / "gone.lorax", tmp_path):
        with pytest.raises(PathError), unpacked(path):
            pass
    os.mkfifo(tmp_path / "pipe.lorax")
    with pytest.raises(PathError, match="no ordinary file"), unpacked(tmp_path / "pipe.lorax"):
        pass


def test_what_is_written_is_on_the_disk(
    sealed: StoredAdapter, store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files before they come into their places, folders afterwards."""
    synced: list[str] = []
    fsync = os.fsync

    def sync(handle: int) -> None:
        status = os.fstat(handle)
        synced.append("folder" if stat.S_ISDIR(status.st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", sync)
    pack(sealed, tmp_path / "x.lorax")
    assert synced == ["file", "folder"]
    synced.clear()
    store.add("x", sealed.folder, sealed.manifest)
    assert synced.count("file") >= 4
    assert synced.count("folder") >= 3
    assert synced[-1] == "folder"


# --- what goes with an adapter ----------------------------------------------------------------------------------------


def test_seen_images_and_signatures_travel(sealed: StoredAdapter, store: AdapterStore, tmp_path: Path) -> None:
    source = Path(shutil.copytree(sealed.folder, tmp_path / "source"))
    (source / MANIFEST_FILE).unlink()
    (source / SEEN_FILE).write_bytes(SeenImages.of(["ab" * 32]).to_bytes())
    stored = store.add("light", source, dataclasses.replace(sealed.manifest, files={}))
    assert SEEN_FILE in stored.manifest.files
    (tmp_path / "sig").write_bytes(b"a signature")
    store.attach_signature("light", tmp_path / "sig")
    other = AdapterStore(tmp_path / "other")
    with unpacked(pack(store.get("light"), tmp_path / "light.lorax")) as folder:
        received = receive(other, folder)
    for file in (*FILES, SEEN_FILE, SIGNATURE_FILE):
        assert (received.folder / file).read_bytes() == (stored.folder / file).read_bytes()
    assert read_seen(received.folder, received.manifest) == SeenImages.of(["ab" * 32])


def test_a_signature_is_attached_to_files_that_are_there(
    sealed: StoredAdapter, store: AdapterStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.add("light", sealed.folder, sealed.manifest)
    assert not first.signed
    signed = Path(shutil.copytree(first.folder, tmp_path / "signed"))
    for content, verified, expected in ((b"one", False, b"one"), (b"two", False, b"one"), (b"three", True, b"three")):
        (signed / SIGNATURE_FILE).write_bytes(content)
        received = receive(store, signed, replace=True, verified=verified)
        assert received.folder == first.folder
        assert (received.folder / SIGNATURE_FILE).read_bytes() == expected, "only a verified one takes another's place"
    assert not caplog.messages
    manifest = dataclasses.replace(sealed.manifest, skill=caption("other"))
    assert not store.add("light", sealed.folder, manifest, replace=True).signed
    assert caplog.messages == ["Adapter 'light' was signed; version 5, in use now, is not."]


def test_a_record_with_places_is_said(
    sealed: StoredAdapter, store: AdapterStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = dataclasses.replace(sealed.manifest, training={"data": "/home/somebody/patients: 6 examples"})
    pack(store.add("light", sealed.folder, manifest), tmp_path / "x.lorax")
    assert "names folders of the machine" in caplog.text


def test_there_are_at_least_two_hundred_of_them() -> None:
    assert len(ARCHIVES) + len(CONTENTS) + len(MANIFESTS) + FUZZ.max_examples >= 200
