"""``exchange.json``: what an adapter is, beside its PEFT files. No torch.

Its form is published as a JSON Schema (``docs/exchange.schema.json``). A directory without one (saved by plain PEFT) is
a valid adapter; it only knows less about itself.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.models.fingerprint import Sketch
from lorax_vlm.types import GenerationSettings

MANIFEST_FILE = "exchange.json"
SCHEMA_VERSION = 2
MAX_MANIFEST_BYTES = 8 * 1024**2

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=_STRICT)
class AdaptedPart:
    """The base's own weights in the places that an adapter changes, of one component."""

    digest: str
    tensors: int
    norm: float
    sketch: Annotated[str, AfterValidator(lambda text: Sketch.from_text(1.0, text) and text)]
    """How far another base's weights are from these can be estimated with it; see ``models.fingerprint.Sketch``."""

    def as_sketch(self) -> Sketch:
        """The sketch in numbers."""
        return Sketch.from_text(self.norm, self.sketch)


@dataclass(frozen=True, config=_STRICT)
class BaseIdentity:
    """Which base an adapter belongs to."""

    name: str
    family: str
    configuration: dict[str, Any]
    """What decides names, shapes and the function, by dotted name; see ``models.description``."""
    components: dict[str, str]
    """Digest of the weights per component."""
    adapted: dict[str, AdaptedPart] = Field(default_factory=dict)
    """By component; empty until the adapter's sites are known."""
    tokenizer: str | None = None
    processor: str | None = None
    revision: str | None = None
    quantization: str = "none"
    dtype: str = "float32"


@dataclass(frozen=True, config=_STRICT)
class FileRecord:
    """One file of an adapter."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: _Sha256


@dataclass(frozen=True, config=_STRICT)
class Measurement:
    """One figure with its 95 % interval."""

    metric: str
    data: str
    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, config=_STRICT)
class Parent:
    """An adapter that this one was made from."""

    name: str
    manifest: _Sha256
    """Digest of its manifest, which names its files by theirs."""
    method: str
    """Such as ``component-copy``, ``distilled`` or ``merge-cat``."""
    parameters: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class CanaryAnswer:
    """What a model put out for the canary's input at its first answer position."""

    digest: _Sha256
    """Of the logits in float32, byte for byte."""
    top: list[tuple[int, float]]
    """The largest logits with their numbers: equal within a tolerance on another machine."""


@dataclass(frozen=True, config=_STRICT)
class Canary:
    """A fixed input, and what the base answers to it with and without the adapter."""

    scene: int
    """Seed of the drawn image."""
    prompt: str
    base: CanaryAnswer
    adapted: CanaryAnswer
    largest_change: float
    """Between any two logits, with and without."""


@dataclass(frozen=True, config=_STRICT)
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
    rank: Annotated[int, Field(ge=0)] = 0
    """The largest rank of any site; 0 when unknown."""
    sites: dict[str, int] = Field(default_factory=dict)
    """Number of adapted modules per component."""
    prompt: str = ""
    """The prompt it was trained on; used again at inference. ``{question}`` stands for the question."""
    generation: GenerationSettings | None = None
    """How its text is decoded when the caller does not say. None: as the base's."""
    labels: tuple[str, ...] = ()
    """The answers of an own head, in the order of its outputs; empty without one."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Data with their identity, steps, settings and losses."""
    metrics: tuple[Measurement, ...] = ()
    lineage: tuple[Parent, ...] = ()
    licence: str = ""
    canary: Canary | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    """Every file beside this one; empty until it is stored."""
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    """UTC, ISO 8601."""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, so equal manifests are equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of ``to_json``. It names the files by their digests, so it stands for the whole adapter."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_ADAPTER = TypeAdapter(Manifest)


def read_manifest(folder: Path, name: str, *, required: bool = False) -> Manifest:
    """Read ``exchange.json``; without one, what can be said without it.

    Args:
        folder: Of the adapter.
        name: Of the adapter, for errors and where there is none.
        required: Without one it is damaged.

    Raises:
        DamagedAdapter: The file is not a manifest of a known version.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is larger than {MAX_MANIFEST_BYTES:,} bytes"])
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required:
            raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} does not exist"]) from None
        return Manifest(name=name, task="unknown", style="", base=None, trained=True)
    except UnicodeDecodeError as error:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is not UTF-8 text: {error}"]) from error
    try:
        return parse_manifest(text)
    except ValueError as error:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is not a manifest: {error}"]) from error


def parse_manifest(text: str) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ValueError: It is none of this version; everything wrong is said.
    """
    record = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    version = record.get("schema_version") if isinstance(record, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version!r}, this version reads {SCHEMA_VERSION}")
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise ValueError("; ".join(wrong)) from error


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of ``exchange.json``."""
    schema = _ADAPTER.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": MANIFEST_FILE, **schema}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return record
