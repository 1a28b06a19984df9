"""Adapter folders of other people: configurations, weights, records and files, damaged in bytes and in structure.

What must hold of whatever is taken: the library that others read weights with reads them too, what is stored is what
was checked and verifies, nothing but the adapter's files comes along, and no base is ``exact`` that is not.
"""

import copy
import json
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fuzz.harness import Fuzzer, main
from lorax_vlm.adapters.compatibility import Level, check_compatibility
from lorax_vlm.adapters.files import AdapterFiles, read_adapter
from lorax_vlm.adapters.identity import describe_adapted
from lorax_vlm.adapters.inspection import inspect_adapter
from lorax_vlm.adapters.integrity import SIGNATURE_FILE
from lorax_vlm.adapters.manifest import MANIFEST_FILE, BaseIdentity, FileRecord, Manifest, read_manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import AdapterError
from lorax_vlm.models.catalog import MINIS_DIR
from lorax_vlm.models.description import BaseDescription, describe_checkpoint
from lorax_vlm.models.fingerprint import read_fingerprint
from lorax_vlm.skills import caption

BASE = "blip2-opt-mini"
SECRET = b"what no adapter may carry away"
_RANK = 3
_PATTERNS = (
    *("q_proj", ".*q_proj", "^language_model.*", "(q|v)_proj", r"model\.layers\.\d+", "[a-z_.]+fc1", "all-linear"),
    *("([a-z_.0-9]+)+!", "(a|a)*$", "(.*)*x", "(?=q)", r"(q)\1", "(", "[", "a{99999}", "(?i)Q_PROJ", "x" * 5000, ""),
    *("(" * 500 + ")" * 500, "[^.]" * 900, "(?P<n>q)(?P=n)", "\ud83d", "\0", "..", "a|" * 400 + "b", "(?#x)v_proj"),
)
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        -1,
        3.0,
        0.5,
        1e308,
        1e-308,
        10**5000,
        10**400,
        2**63,
        "",
        "none",
        "x" * 3000,
        "\ud83d",
        "a\0",
    ),
    *([], {}, [[]], [None], {"a": None}, {"": 1}, ["q_proj", 1], [2**70], {"q_proj": 0}, {"q_proj": 2, "v_proj": 1e9}),
    *("LORA", "pissa", "olora", "eva", "loftq", "classifier", ["classifier"], ["lm_head"], "lora_only", "all", "../x"),
    *({pattern: 2} for pattern in _PATTERNS),
    *_PATTERNS,
)
_TEXTS = (
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b'"LORA"',
        b"[" * 3000,
        b'{"r": NaN}',
        b'{"r": 1e999}',
        b'{"r": ' + b"9" * 5000 + b"}",
    ),
    *(b'{"r": 1, "r": 2}', b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", b"\xff\xfe{\0}\0"),
)


@cache
def known_base() -> BaseDescription:
    """The base that the sound ones are for, with its weights read."""
    read_fingerprint(MINIS_DIR / BASE)
    return describe_checkpoint(MINIS_DIR / BASE, BASE)


@cache
def sound_weights(kind: str = "float32") -> bytes:
    """Factors of two layers; the values are never zero."""
    rng = np.random.default_rng(1)
    names = [name for name in known_base().linear_shapes if name.endswith(("layers.0.self_attn.q_proj", "fc1"))][:2]
    tensors = {}
    for name in names:
        width_out, width_in = known_base().linear_shapes[name]
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(size=(_RANK, width_in)).astype(kind)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.normal(size=(width_out, _RANK)).astype(kind)
    return save(tensors, {"format": "pt"})


def sites() -> list[str]:
    """The modules that they change."""
    return sorted({name.split(".", 2)[2].rsplit(".lora_", 1)[0] for name in load(sound_weights())})


def sound_config() -> dict[str, Any]:
    """As PEFT writes it."""
    return {
        **{"peft_type": "LORA", "task_type": None, "r": _RANK, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none"},
        **{"target_modules": sites(), "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None},
        **{"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "modules_to_save": None},
        **{"init_lora_weights": True, "fan_in_fan_out": False, "inference_mode": True, "base_model_name_or_path": BASE},
    }


def sound_manifest() -> Manifest:
    """Of an adapter that was trained on the base."""
    base = known_base()
    assert base.fingerprint is not None
    identity = BaseIdentity(
        name=BASE,
        family=base.family,
        configuration=dict(base.configuration),
        components=base.fingerprint.components,
        adapted=describe_adapted(base.fingerprint, sites()),
        preparation=dict(base.preparation),
    )
    return Manifest("it", caption("concise"), identity, True, "light", _RANK, training={"steps": 3, "rate": 0.1})


@cache
def sound_seen() -> bytes:
    """Of two trainings."""
    parts = [SeenImages.of([f"{number:064x}" for number in numbers]) for numbers in (range(5), range(3, 9))]
    return (parts[0] + parts[1]).to_bytes()


def damaged(rng: random.Random, value: Any, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy of a JSON value with a few places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([0, 1, 1, 2, 4])):
        places = list(_places(value))
        if not places:
            return value
        holder, key = rng.choice(places)
        way = rng.random()
        if way < 0.7:
            holder[key] = copy.deepcopy(rng.choice(values))
        elif way < 0.85:
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        else:
            holder[
                rng.choice(["lora_bias", "use_dora", "layer_replication", "eva_config", "odd", "x" * 2000, "\0"])
            ] = 1
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
            yield value, key
            yield from _places(inner)


def encoded(rng: random.Random, record: Any) -> bytes:
    """JSON, sometimes with bytes changed, in another encoding, or another text altogether."""
    if rng.random() < 0.05:
        return rng.choice(_TEXTS)
    try:
        text = json.dumps(record, indent=rng.choice([None, 1, 2]))
    except ValueError:  # Python writes no whole number of thousands of digits
        text = '{"r": ' + "9" * 5000 + "}"
    data = text.encode(rng.choice(["utf-8"] * 9 + ["utf-8-sig", "utf-16"]))
    return flipped(rng, data) if rng.random() < 0.1 else data


def flipped(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, cut away, or there twice."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not changed:
            break
        place = rng.randrange(min(len(changed), rng.choice((40, 600, 10**9))))
        way = rng.random()
        if way < 0.7:
            changed[place] = rng.choice((0, 0xFF, 0x22, 0x7B, rng.randrange(256)))
        elif way < 0.8:
            del changed[place:]
        elif way < 0.9:
            del changed[place : place + rng.choice((1, 2, 8))]
        else:
            changed[place:place] = changed[place : place + rng.choice((1, 8, 300))]
    return bytes(changed)


def weights(rng: random.Random) -> bytes:
    """A file of weights: sound ones, other values, other names, another header, other bytes."""
    way = rng.random()
    data = sound_weights(rng.choice(("float32", "float32", "float16")))
    if way < 0.4:
        return data
    if way < 0.65:
        return save(_changed_tensors(rng), rng.choice((None, {"format": "pt"}, {"a": "\u202e"})))
    if way < 0.85:
        length = int.from_bytes(data[:8], "little")
        header = encoded(rng, damaged(rng, json.loads(data[8 : 8 + length]), (*VALUES, "F8_E4M3", "BF16", [0, 4], [3])))
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return flipped(rng, data)


def _changed_tensors(rng: random.Random) -> dict[str, np.ndarray]:
    tensors = dict(load(sound_weights()))
    for name in rng.sample(sorted(tensors), rng.randrange(1, 4)):
        values = np.array(tensors.pop(name))
        way = rng.randrange(9)
        if way == 0:
            values[0, 0] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
        elif way == 1:
            values = values * 0
        elif way == 2:
            values = values.T.copy()
        elif way == 3:
            values = values[:, :1].copy() if rng.random() < 0.5 else values[:0].copy()
        elif way == 4:
            values = values.astype(rng.choice(("float64", "int8", "bool", "uint16")))
        elif way == 5:
            values = values.reshape(rng.choice(((-1,), (1, *values.shape), (*values.shape, 1))))
        elif way == 6:
            continue
        other = name.replace(*rng.choice((("lora_A", "lora_C"), ("lora_A", "lora_A.default"), ("base_model.", ""))))
        odd = ("classifier.3.weight", "\u202e", "\x1b[2J", "a" * 3000, "base_model.model..lora_A.weight", "")
        tensors[rng.choice((name, name, name, other, rng.choice(odd)))] = values
    return tensors


def write_folder(rng: random.Random, folder: Path) -> Path:
    """A folder with an adapter in it, more or less."""
    folder.mkdir(parents=True)
    (folder.parent / "secret").write_bytes(SECRET)
    files = {WEIGHTS_FILE: weights(rng), CONFIG_FILE: encoded(rng, damaged(rng, sound_config()))}
    if rng.random() < 0.3:
        files[SEEN_FILE] = sound_seen() if rng.random() < 0.5 else flipped(rng, sound_seen())
    if rng.random() < 0.6:
        records = {name: vars(FileRecord.of(data)) for name, data in files.items()} if rng.random() < 0.7 else {}
        record = {**json.loads(sound_manifest().to_json()), "files": records}
        files[MANIFEST_FILE] = encoded(rng, record if rng.random() < 0.5 else damaged(rng, record))
    if rng.random() < 0.2:
        files[rng.choice((SIGNATURE_FILE, "README.md", "adapter_model.bin"))] = b"\x80\x04."
    for name, data in files.items():
        way = rng.random()
        if way < 0.93:
            (folder / name).write_bytes(data)
        elif way < 0.95:
            (folder / name).symlink_to(rng.choice(("../secret", "/dev/zero", name, "/etc/hostname")))
        elif way < 0.96:
            (folder / name).mkdir()
        elif way < 0.97:
            os.mkfifo(folder / name)
    return folder


def attempt(rng: random.Random, folder: Path) -> None:
    """Look at one, take it in if it can be, and use the store as people do."""
    source = write_folder(rng, folder / "it")
    try:
        inspection = inspect_adapter(source)
        assert all(np.isfinite(site.norm) for site in inspection.sites)
    except AdapterError:
        pass
    manifest = read_manifest(source, "it")
    adapter = read_adapter(source, "it", manifest.files or None)
    check_weights(adapter.data)
    _check_verdict(adapter.files, manifest)
    store = AdapterStore(folder / "store")
    stored = store.add("it", source, manifest)
    assert store.verify().problems == ()
    assert {path.name for path in stored.folder.iterdir()} - {SIGNATURE_FILE} == {MANIFEST_FILE, *stored.manifest.files}
    assert not any(SECRET in path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert store.read_bytes("it")[1].content == adapter.content
    assert store.list() == ([stored], [])
    assert store.search("it") == [stored]
    store.export("it", folder / "out")
    again = read_adapter(folder / "out", "it", read_manifest(folder / "out", "it").files)
    assert again.content == adapter.content
    store.remove("it")
    assert not list((store.root / "objects").iterdir())


def check_weights(data: bytes) -> None:
    """What is taken is what the library of everybody else reads."""
    try:
        load(data)
    except SafetensorError as error:
        raise AssertionError(f"others do not read it: {error}") from error
    except (KeyError, TypeError):  # types that numpy has none for
        return


def _check_verdict(files: AdapterFiles, manifest: Manifest) -> None:
    base = known_base()
    found = check_compatibility(files, manifest, base)
    assert all(isinstance(reason, str) and len(reason) < 5000 for reason in found.reasons)
    if found.verdict == "exact":
        made_for = manifest.base
        assert found.level is Level.IDENTICAL
        assert made_for is not None
        assert base.fingerprint is not None
        assert made_for.components == base.fingerprint.components
        assert json.dumps(made_for.configuration, sort_keys=True) == json.dumps(base.configuration, sort_keys=True)
        assert made_for.preparation == base.preparation
        assert set(files.factors) <= set(base.linear_shapes)


FUZZER = Fuzzer("adapter_folders", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
