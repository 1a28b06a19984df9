"""Bundles: the same adapter in and out, and nothing else ever comes in, or gets out of the store."""

import io
import json
import os
import pickle
import shutil
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lorax_vlm.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from lorax_vlm.adapters.integrity import SIGNATURE_FILE, hash_file
from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.store import AdapterStore, StoredAdapter
from lorax_vlm.errors import AdapterExists, AdapterNameError, DamagedAdapter, LoraxError
from lorax_vlm.exchange.bundle import pack, receive, unpacked
from lorax_vlm.models.loading import LoadedModel
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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for entry, content in entries:
            made.writestr(entry, content)
    return buffer.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in FILES}


def special(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
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
    "another version": lambda m: m.update(schema_version=3),
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
    """Either nothing of it is taken in, or the flipped byte is none of the adapter's: all of it is as it was."""
    scratch = tmp_path_factory.mktemp("fuzz")
    data = bytearray(archive(list(contents(sealed.folder).items())))
    data[int(position * (len(data) - 1))] ^= flip
    (scratch / "x.lorax").write_bytes(data[: int(len(data) * keep)])
    store = AdapterStore(scratch / "store")
    try:
        with unpacked(scratch / "x.lorax") as folder:
            received = receive(store, folder)
    except LoraxError:
        assert store.names() == []
    else:
        assert received.folder.name == sealed.folder.name
    assert sorted(path.name for path in scratch.iterdir()) in (["x.lorax"], ["store", "x.lorax"])


def test_there_are_at_least_two_hundred_of_them() -> None:
    assert len(ARCHIVES) + len(CONTENTS) + len(MANIFESTS) + FUZZ.max_examples >= 200
