"""``exchange.json``: what an adapter is, beside its PEFT files. No torch.

Its form is published as a JSON Schema (``docs/exchange.schema.json``). A directory without one (saved by plain PEFT) is
a valid adapter; it only knows less about itself.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.errors import DamagedAdapter, UsageError
from lorax_vlm.foreign import parse_json, quoted, text_problem
from lorax_vlm.models.fingerprint import Sketch
from lorax_vlm.skills import Skill, skill_of_words
from lorax_vlm.types import GenerationSettings

MANIFEST_FILE = "exchange.json"
SCHEMA_VERSION = 4
_ADDED_AFTER: Mapping[int, tuple[tuple[str, ...], ...]] = {
    2: (("skill",), ("base", "preparation"), ("canary", "change")),
    3: (("skill",),),
}
"""By version that is still read: the entries that came after it. It is written again as it was, without them."""
_WORDS = ("task", "style")
"""Entries up to version 3, in the place of ``skill``."""
_LAST_WITH_WORDS = 3
INIT_FROM = "init_from"
"""Fact of training: the adapter that it began with, and its digest."""
MAX_MANIFEST_BYTES = 8 * 1024**2
_SHOWN, _DEEPEST = 8, 60

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
    """Its whole configuration by dotted name, but for what does not matter; see ``models.description``. Up to version 2
    only a few entries."""
    components: dict[str, str]
    """Digest of the weights per component."""
    adapted: dict[str, AdaptedPart] = Field(default_factory=dict)
    """By component; empty until the adapter's sites are known."""
    preparation: dict[str, str] | None = None
    """Digest of each file that says how text and images are prepared. None up to version 2."""
    tokenizer: str | None = None
    """Digest of the vocabulary alone, as up to version 2."""
    processor: str | None = None
    """Digest of some settings of the image processor, as up to version 2."""
    revision: str | None = None
    quantization: str = "none"
    dtype: str = "float32"

    def is_of(self, name: str, components: Mapping[str, str] | None) -> bool:
        """Whether it may be a base that is here: its name, and the weights where both are known.

        Args:
            name: What manifests call that base.
            components: Digests of its weights. None: not known.
        """
        return self.name == name and (not components or not self.components or self.components == components)


@dataclass(frozen=True, config=_STRICT)
class FileRecord:
    """One file of an adapter."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: _Sha256

    @classmethod
    def of(cls, data: bytes) -> "FileRecord":
        """That of a file with this content."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


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

    scene: Annotated[int, Field(ge=0, lt=2**63)]
    """Seed of the drawn image."""
    prompt: str
    base: CanaryAnswer
    adapted: CanaryAnswer
    largest_change: float
    """Between any two logits, with and without."""
    change: Annotated[list[tuple[int, float]], Field(max_length=1000)] | None = None
    """The logits that the adapter changes most, by number: how much it adds. None up to version 2."""


@dataclass(frozen=True, config=_STRICT)
class Manifest:
    """The record of one adapter."""

    name: str
    skill: Skill | None
    """What it is for; None where that is not known."""
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
    task: str = ""
    """Only up to version 3: a word that ``skill`` was made of, as was ``style``; see ``skills.skill_of_words``."""
    style: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def skill_name(self) -> str:
        """The style or kind of its skill; empty where that is not known."""
        return self.skill.name if self.skill is not None else ""

    @property
    def no_better(self) -> bool:
        """Whether training found nothing better than what it began with, the base or ``begun_with``."""
        step = self.training.get("best_step")
        return type(step) is int and step == 0

    @property
    def begun_with(self) -> str | None:
        """The adapter that its training began with; None for the base alone."""
        said = self.training.get(INIT_FROM)
        name = said.get("adapter") if isinstance(said, Mapping) else None
        return name if isinstance(name, str) else None

    def record(self) -> dict[str, Any]:
        """All that it says, by the names of its version."""
        record = dataclasses.asdict(self)
        if self.schema_version > _LAST_WITH_WORDS:
            for entry in _WORDS:
                record.pop(entry)
        for *parents, entry in _ADDED_AFTER.get(self.schema_version, ()):
            holder: Any = record
            for parent in parents:
                holder = holder[parent] if isinstance(holder, dict) else None
            if isinstance(holder, dict):
                holder.pop(entry)
        return record

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, so equal manifests are equal bytes.

        Raises:
            UsageError: It holds a number that JSON does not know, or half a character.
        """
        try:
            return canonical_json(self.record())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"The manifest of {self.name!r} cannot be written: {error}.") from error

    @property
    def digest(self) -> str:
        """SHA-256 of ``to_json``. It names the files by their digests, so it stands for the whole adapter."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


_ADAPTER = TypeAdapter(Manifest)


def read_manifest(folder: Path, name: str, *, required: bool = False, digest: str | None = None) -> Manifest:
    """Read ``exchange.json``; without one, what can be said without it.

    Args:
        folder: Of the adapter.
        name: Of the adapter, for errors and where there is none.
        required: Without one it is damaged.
        digest: SHA-256 that it must have. None: any.

    Raises:
        DamagedAdapter: The file is not a manifest of a known version.
    """
    text = _read_text(folder, name)
    if text is None:
        if required:
            raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} does not exist"])
        return Manifest(name=name, skill=None, base=None, trained=True)
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} was changed"])
    try:
        return parse_manifest(text)
    except ValueError as error:
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} is not a manifest: {error}"]) from error


def _read_text(folder: Path, name: str) -> bytes | None:
    try:
        return read_regular(folder / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DamagedAdapter(name, str(folder), [f"{MANIFEST_FILE} cannot be read: {reason}"]) from error


def parse_manifest(text: str | bytes) -> Manifest:
    """A manifest from its JSON.

    Raises:
        ValueError: It is none of a version that is read; what is wrong is said.
    """
    record = parse_json(text, unique=True)
    version = record.get("schema_version") if isinstance(record, dict) else None
    known = {SCHEMA_VERSION, *_ADDED_AFTER}
    if type(version) is not int or version not in known:
        raise ValueError(
            f"schema_version is {quoted(version)}, this version reads {', '.join(map(str, sorted(known)))}"
        )
    problem = next(iter(_odd_texts(record)), None)
    if problem:
        raise ValueError(problem)
    for *parents, entry in _ADDED_AFTER.get(version, ()):
        holder: Any = record
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and entry in holder:
            raise ValueError(f"{'.'.join((*parents, entry))}: there is no such entry in version {version}")
    _require_words(record, version)
    try:
        if version > _LAST_WITH_WORDS:
            return _ADAPTER.validate_json(text)
        manifest = _ADAPTER.validate_json(json.dumps({"skill": None, **record}))
        return replace(manifest, skill=skill_of_words(manifest.task, manifest.style))
    except ValidationError as error:
        wrong = [f"{_place(e['loc'])}: {e['msg']}" for e in error.errors(include_url=False, include_input=False)]
        more = [f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
        raise ValueError("; ".join([*(line[:200] for line in wrong[:_SHOWN]), *more])) from None


def _require_words(record: Mapping[str, Any], version: int) -> None:
    wanted = version <= _LAST_WITH_WORDS
    problem = "Field required" if wanted else f"there is no such entry in version {version}"
    for entry in _WORDS:
        if (entry in record) != wanted:
            raise ValueError(f"{entry}: {problem}")


def _place(location: tuple[str | int, ...]) -> str:
    return ".".join(quoted(part, 40)[1:-1] if isinstance(part, str) else str(part) for part in location)


def _odd_texts(value: Any, depth: int = 0) -> Iterator[str]:
    """What is wrong with the texts in a JSON value, names of entries included."""
    if isinstance(value, str):
        if problem := text_problem(value):
            yield f"{quoted(value)}: {problem}"
    elif isinstance(value, dict | list):
        if depth > _DEEPEST:
            yield "objects or lists within each other too deep"
            return
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _odd_texts(part, depth + 1)


def canonical_json(record: Any) -> str:
    """JSON with sorted keys, so that equal values are equal bytes.

    Raises:
        ValueError: It holds what JSON does not know.
    """
    text = json.dumps(record, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    text.encode("utf-8")
    return text


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of ``exchange.json``."""
    schema = _ADAPTER.json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": MANIFEST_FILE, **schema}
