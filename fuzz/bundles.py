"""Bundles of other people: archives with bytes, lengths, order, names and files changed, and addresses to fetch them.

What must hold of whatever is taken: packing it again gives the same bytes, nothing comes to lie outside of its folder,
and what is in the store is what was in the bundle.
"""

import io
import json
import random
import stat
import struct
import sys
import warnings
import zipfile
from functools import cache
from pathlib import Path

from fuzz.adapter_folders import SECRET, damaged, encoded, flipped, sound_config, sound_manifest, sound_seen, weights
from fuzz.harness import Fuzzer, main
from lorax_vlm.adapters.integrity import SIGNATURE_FILE
from lorax_vlm.adapters.manifest import MANIFEST_FILE, FileRecord
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.adapters.seen import SEEN_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.sharing.archive import write_archive
from lorax_vlm.sharing.bundle import pack, receive, unpacked

_NAMES = (
    *("../evil", "/evil", "C:\\evil", "a/../../evil", "evil/", "EXCHANGE.JSON", "exchange.json ", "exchange.json\0x"),
    *("adapter_model.bin", "setup.py", "a" * 5000, "", ".", "..", "\u202e", MANIFEST_FILE, WEIGHTS_FILE, SEEN_FILE),
)


def _files(rng: random.Random) -> dict[str, bytes]:
    """An adapter's files and the record that names them, sound for the most part."""
    whole = rng.random() < 0.6
    data = weights(random.Random(0)) if whole else weights(rng)
    config = json.dumps(sound_config()).encode() if whole else encoded(rng, damaged(rng, sound_config()))
    files = {CONFIG_FILE: config, WEIGHTS_FILE: data}
    if rng.random() < 0.3:
        files[SEEN_FILE] = sound_seen()
    record = json.loads(sound_manifest().to_json())
    record["files"] = {name: vars(FileRecord.of(content)) for name, content in files.items()}
    text = (json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    if rng.random() < 0.3:
        text = encoded(rng, damaged(rng, record))
    signature = {SIGNATURE_FILE: b"{}"} if rng.random() < 0.2 else {}
    return {MANIFEST_FILE: text, **files, **signature}


@cache
def _sound() -> bytes:
    out = io.BytesIO()
    write_archive(out, [(name, [data]) for name, data in _files(random.Random(3)).items()])
    return out.getvalue()


def _by_us(rng: random.Random, files: dict[str, bytes]) -> bytes:
    rows = list(files.items())
    if rng.random() < 0.3:
        rng.shuffle(rows)
    if rng.random() < 0.2:
        rows.insert(rng.randrange(len(rows) + 1), rng.choice(rows))
    if rng.random() < 0.2:
        rows.insert(rng.randrange(len(rows) + 1), (rng.choice(("evil", "../evil", "adapter_model.bin")), b"x"))
    out = io.BytesIO()
    write_archive(out, [(name, [data]) for name, data in rows])
    return out.getvalue()


def _by_zip(rng: random.Random, files: dict[str, bytes]) -> bytes:
    """By the standard library: compressed, encrypted by its flag, with links, comments and other names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that occur twice
        for name, content in files.items():
            entry = zipfile.ZipInfo(rng.choice(_NAMES) if rng.random() < 0.1 else name, (1980, 1, 1, 0, 0, 0))
            kind = rng.choice([stat.S_IFREG] * 8 + [stat.S_IFLNK, stat.S_IFIFO])
            entry.external_attr = (kind | 0o644) << 16
            entry.compress_type = rng.choice([zipfile.ZIP_STORED] * 8 + [zipfile.ZIP_DEFLATED])
            with made.open(entry, "w", force_zip64=rng.random() < 0.8) as out:
                out.write(content)
        if rng.random() < 0.2:
            made.comment = b"x" * rng.choice((1, 60_000))
    return buffer.getvalue()


def _numbers(rng: random.Random, data: bytes) -> bytes:
    """A length, a size, an offset or a count of one of its headers changed."""
    marks = (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7")
    places = [place for mark in marks for place in range(len(data)) if data.startswith(mark, place)]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        width = rng.choice((2, 4, 8))
        place = rng.choice(places) + rng.randrange(4, 56)
        if place + width <= len(changed):
            value = rng.choice(
                (0, 1, 0x7FFF, 0xFFFF, 2**31, 2**32 - 1, 2**63, 2**64 - 1, len(data), rng.randrange(2**16))
            )
            changed[place : place + width] = struct.pack("<Q", value)[:width]
    return bytes(changed)


def _bundle(rng: random.Random) -> bytes:
    way = rng.random()
    if way < 0.45:
        data = _by_us(rng, _files(rng))
    elif way < 0.65:
        data = _by_zip(rng, _files(rng))
    elif way < 0.8:
        data = _numbers(rng, _sound())
    elif way < 0.95:
        data = flipped(rng, _sound())
    else:
        end = zipfile.ZipFile(io.BytesIO(_sound())).start_dir
        data = _sound()[:end] + _sound()[end:] * rng.choice((2, 500))
    if rng.random() < 0.05:
        data = rng.choice((b"#!/bin/sh\n" + data, data + b"\0", data + data, b"", data[:-1], b"PK\5\6" + b"\0" * 18))
    return data


def attempt(rng: random.Random, folder: Path) -> None:
    """Take one in, and pack it again."""
    path = folder / "given.lorax"
    data = _bundle(rng)
    path.write_bytes(data)
    (folder / "secret").write_bytes(SECRET)
    store = AdapterStore(folder / "store")
    before = sorted(folder.parent.glob("evil*"))
    try:
        with unpacked(path) as inside:
            assert not list(inside.parent.glob("evil*"))
            stored = receive(store, inside, rng.choice((None, None, "it", "..", "con")))
    finally:
        assert sorted(folder.parent.glob("evil*")) == before
        assert {path.name for path in folder.iterdir()} <= {"given.lorax", "secret", "store"}
    assert store.verify().problems == ()
    assert pack(stored, folder / "again.lorax").read_bytes() == data
    with zipfile.ZipFile(path) as others:
        assert others.testzip() is None
        assert {name: others.read(name) for name in others.namelist()} == {
            file.name: file.read_bytes() for file in stored.folder.iterdir()
        }


FUZZER = Fuzzer("bundles", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
