"""``exchange.json``: what an adapter is, beside its PEFT files. No torch.

A directory without one (saved by plain PEFT) is a valid adapter; it only knows less about itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_origin

from lorax_vlm.errors import DamagedAdapter

MANIFEST_FILE = "exchange.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BaseIdentity:
    """Which base an adapter belongs to."""

    name: str
    family: str
    architecture: str
    """Digest of the configuration."""
    fingerprint: Mapping[str, str]
    """Digest of the weights per component."""
    revision: str | None = None
    quantization: str = "none"
    dtype: str = "float32"


@dataclass(frozen=True)
class Manifest:
    """The record of one adapter."""

    name: str
    task: str
    """What it does, such as ``captioning``."""
    style: str
    base: BaseIdentity | None
    """None for an adapter that came without a manifest."""
    trained: bool
    recipe: str = ""
    rank: int = 0
    """The largest rank of any site; 0 when unknown."""
    sites: Mapping[str, int] = field(default_factory=dict)
    """Number of adapted modules per component."""
    prompt: str = ""
    """The prompt it was trained on; used again at inference. ``{question}`` stands for the question."""
    labels: Sequence[str] = ()
    """The answers of an own head, in the order of its outputs; empty without one."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data, steps, settings and losses."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, so equal manifests are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=2) + "\n"


def read_manifest(folder: Path, name: str) -> Manifest:
    """Read ``exchange.json``; without one, what can be said without it.

    Raises:
        DamagedAdapter: The file is not a manifest of a known version.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Manifest(name=name, task="unknown", style="", base=None, trained=True)
    except UnicodeDecodeError as error:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is not UTF-8 text: {error}"]) from error
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is not a manifest: {error}"]) from error


def _parse(record: Any) -> Manifest:
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {record.get('schema_version')!r}, this version reads {SCHEMA_VERSION}")
    unknown = set(record) - {f.name for f in fields(Manifest)}
    if unknown:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    for field_ in fields(Manifest):
        if field_.name != "base" and field_.name in record:
            _require_type(field_.name, record[field_.name], field_.type)
    labels = record.get("labels", ())
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels is not a list of texts")
    record = {**record, "labels": tuple(labels)}
    base = record.get("base")
    if base is None:
        return Manifest(**record)
    if not isinstance(base, dict):
        raise ValueError(f"base is {base!r}")
    for field_ in fields(BaseIdentity):
        if field_.name in base:
            _require_type(f"base.{field_.name}", base[field_.name], field_.type)
    if not all(isinstance(digest, str) for digest in base.get("fingerprint", {}).values()):
        raise ValueError("base.fingerprint is not text by component")
    return Manifest(**{**record, "base": BaseIdentity(**base)})


def _require_type(name: str, value: object, annotation: Any) -> None:
    expected = annotation if isinstance(annotation, UnionType) else get_origin(annotation) or annotation
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}")
