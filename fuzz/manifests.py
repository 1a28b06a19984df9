"""Records of other people: ``exchange.json``, what a store's names stand for, seen images and kept fingerprints.

What must hold of whatever is taken: written and read again it is the same, all of it can be printed and shown as JSON,
and a store with damaged records in it lists all others, and can be verified and cleaned.
"""

import dataclasses
import json
import random
import sys
from functools import cache
from pathlib import Path
from typing import Any

from fuzz.adapter_folders import VALUES, damaged, encoded, flipped, sound_config, sound_manifest, sound_seen, weights
from fuzz.harness import Fuzzer, main
from lorax_vlm.adapters.compatibility import check_compatibility
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import MANIFEST_FILE, CanaryAnswer, FileRecord, Manifest, Parent, read_manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages, read_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import LoraxError
from lorax_vlm.sharing.card import write_card
from lorax_vlm.skills import answer

_LINES = (*VALUES, *("schema_version", "exact", "\x1b]0;owned\x07", "[/red]", "{question}", "base", "2024-01-01", -0.0))


@cache
def _base_record() -> dict[str, Any]:
    """A manifest with something in each of its entries."""
    made = sound_manifest()
    answer = CanaryAnswer("0" * 64, [(1, 2.5)])
    record: dict[str, Any] = json.loads(made.to_json())
    record["lineage"] = [vars(Parent("one", "1" * 64, "merge-cat", {"weight": 0.5}))]
    record["canary"] = {
        **{"scene": 3, "prompt": "a", "base": dataclasses.asdict(answer), "adapted": dataclasses.asdict(answer)},
        **{"largest_change": 1.0, "change": [[1, 0.5]]},
    }
    record["metrics"] = [{"metric": "a", "data": "b", "value": 0.5, "low": 0.1, "high": 0.9, "count": 3}]
    record["generation"] = {"max_new_tokens": 20, "num_beams": 2}
    record["labels"] = ["yes", "no"]
    record["files"] = {WEIGHTS_FILE: vars(FileRecord(3, "2" * 64))}
    return record


def _record(rng: random.Random) -> bytes:
    record = damaged(rng, _base_record(), _LINES)
    if isinstance(record, dict) and rng.random() < 0.2:
        record["schema_version"] = rng.choice((1, 2, 3, 4, 2.0, "3", True, None))
    return encoded(rng, record)


def _try_manifest(rng: random.Random, folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(_record(rng))
    manifest = read_manifest(folder, "it", required=True)
    text = manifest.to_json()
    (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    again = read_manifest(folder, "it", digest=manifest.digest)
    assert again == manifest
    assert again.to_json() == text
    json.dumps(dataclasses.asdict(manifest), allow_nan=False).encode()
    assert write_card(manifest)
    _check_against_base(manifest, folder / "adapter")


def _check_against_base(manifest: Manifest, folder: Path) -> None:
    from fuzz.adapter_folders import known_base

    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(weights(random.Random(0)))
    (folder / CONFIG_FILE).write_text(json.dumps(sound_config()))
    found = check_compatibility(read_adapter_files(folder, "it"), manifest, known_base())
    assert all(len(reason) < 5000 for reason in found.reasons)


def _try_seen(rng: random.Random, folder: Path) -> None:
    data = sound_seen() if rng.random() < 0.1 else flipped(rng, sound_seen())
    (folder / SEEN_FILE).write_bytes(data)
    record = FileRecord.of(data) if rng.random() < 0.9 else FileRecord(len(data), "0" * 64)
    seen = read_seen(folder, dataclasses.replace(sound_manifest(), files={SEEN_FILE: record}))
    assert seen is not None
    assert seen.to_bytes() == data
    joined = seen + SeenImages.from_bytes(sound_seen())
    assert SeenImages.from_bytes(joined.to_bytes()) == joined
    assert all(joined.contains(f"{number:064x}") for number in range(9))


def _try_store(rng: random.Random, folder: Path) -> None:
    """A store whose records somebody wrote into."""
    source, store = folder / "source", AdapterStore(folder / "store")
    source.mkdir()
    (source / WEIGHTS_FILE).write_bytes(weights(random.Random(0)))
    (source / CONFIG_FILE).write_text(json.dumps(sound_config()))
    for name in ("a", "b"):
        store.add(name, source, dataclasses.replace(sound_manifest(), skill=answer(name)))
    store.set_alias("a", "stable")
    path = store.root / "names" / "a.json"
    record = json.loads(path.read_text())
    values = (*VALUES, "b", "stable", "../../source", record["versions"][0]["object"], {"stable": 7}, 10**12)
    broken = encoded(rng, damaged(rng, record, values))
    way = rng.random()
    if way < 0.8:
        path.write_bytes(broken)
    elif way < 0.9:
        (store.root / "names" / ".pending").write_bytes(
            encoded(rng, damaged(rng, {"a": broken.decode("latin-1")}, values))
        )
    else:
        (store.root / "names" / rng.choice(("..json", ".json", "A.json", "x y.json", "con.json"))).write_bytes(broken)
    _use(store)


def _use(store: AdapterStore) -> None:
    failed: list[LoraxError] = []
    for call in (
        store.list,
        lambda: store.get("a@stable"),
        lambda: store.read("a"),
        lambda: store.resolve("stable"),
        lambda: store.search("b"),
        store.verify,
        lambda: store.rollback("a"),
        lambda: store.tag("a", add=["x"]),
        lambda: store.set_alias("a", "later"),
        store.clean,
    ):
        try:
            call()
        except LoraxError as error:
            failed.append(error)
    assert len(failed) == 10 or "b" in store.names()
    if not (store.root / "names" / ".pending").exists():
        assert store.read("b")[0].manifest.skill == answer("b"), "another's damage is not its own"
    if failed:
        raise failed[0]


def attempt(rng: random.Random, folder: Path) -> None:
    """One of them."""
    rng.choice((_try_manifest, _try_manifest, _try_manifest, _try_seen, _try_store))(rng, folder)


FUZZER = Fuzzer("manifests", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
