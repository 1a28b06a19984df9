"""A PEFT LoRA directory, read once, and checked before any of it reaches a model. No torch.

Everything wrong is reported at once. What was hashed and checked is kept as bytes and handed on, so that what is used
can be no other. Weights are read as safetensors; a pickle is never opened.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorax_vlm.adapters.advice import advise_on_keys
from lorax_vlm.adapters.manifest import FileRecord
from lorax_vlm.adapters.pair import MAX_WEIGHTS_BYTES, WEIGHTS_FILE, read_file, read_tensors
from lorax_vlm.adapters.pattern_nodes import PatternRefused
from lorax_vlm.adapters.peft_config import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    METHODS_NOT_FOLDED,
    LoraSettings,
    config_problems,
    parse_config,
    read_settings,
    unsupported_features,
)
from lorax_vlm.adapters.seen import MAX_SEEN_BYTES, SEEN_FILE, SeenImages
from lorax_vlm.errors import DamagedAdapter, LoraxError, UnsupportedAdapter
from lorax_vlm.foreign import quoted
from lorax_vlm.models.spec import HEAD
from lorax_vlm.models.tensor_files import StoredTensor, read_header

MAX_NAME_CHARACTERS = 500
_LARGEST_UPDATE = 1e30
"""Above it, products of factors leave what float32 holds."""
_FILE_LIMITS = {CONFIG_FILE: MAX_CONFIG_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES, SEEN_FILE: MAX_SEEN_BYTES}

_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")
_HEAD_KEY = re.compile(rf"base_model\.model\.(?P<name>{HEAD}\.\d{{1,9}}\.(?:weight|bias))")


@dataclass(frozen=True)
class Factor:
    """One matrix of an adapter: its shape and storage, and what was found in its values."""

    shape: tuple[int, ...]
    dtype: str
    largest: float
    """Largest absolute value."""

    @property
    def zero(self) -> bool:
        """Whether it does nothing."""
        return self.largest == 0


@dataclass(frozen=True)
class AdapterFiles:
    """A sound PEFT LoRA directory: all that is known of it, without its weights."""

    folder: Path
    settings: LoraSettings
    factors: Mapping[str, tuple[Factor, Factor]]
    """Per site the factors A ``(R, D_in)`` and B ``(D_out, R)``."""
    size_bytes: int
    head: Mapping[str, Factor] = field(default_factory=dict)
    """Tensors of an own head by name, such as ``classifier.3.weight``; empty without one."""
    records: Mapping[str, FileRecord] = field(default_factory=dict)
    """Sizes and digests of the files that were read."""

    @property
    def config(self) -> Mapping[str, Any]:
        """``adapter_config.json``."""
        return self.settings.config

    @property
    def sites(self) -> list[str]:
        """Module names in the base model, sorted."""
        return sorted(self.factors)

    @property
    def ranks(self) -> list[int]:
        """The distinct ranks, ascending."""
        return sorted({a.shape[0] for a, _ in self.factors.values()})

    def scaling(self, site: str) -> float:
        """What the product of a site's factors is multiplied by: alpha / rank, rank-stabilised alpha / sqrt(rank)."""
        return self.settings.scaling(site, self.factors[site][0].shape[0])

    def shape(self, site: str) -> tuple[int, int]:
        """``(D_out, D_in)`` of the matrix that a site's factors change."""
        a, b = self.factors[site]
        return b.shape[0], a.shape[1]

    @property
    def changes_nothing(self) -> bool:
        """Whether every low-rank product is zero because A or B is, and there is no head."""
        return not self.head and all(a.zero or b.zero for a, b in self.factors.values())


@dataclass(frozen=True, eq=False)
class AdapterBytes:
    """A sound PEFT LoRA directory with its weights: the very bytes that were hashed and checked.

    It is as large as its file; whoever wants to know an adapter and not to use it keeps ``files``.
    """

    files: AdapterFiles
    content: Mapping[str, bytes]
    """Of each file by its name: configuration, weights, and, where it is there and belongs to it, what it has seen."""

    @property
    def data(self) -> bytes:
        """All of ``adapter_model.safetensors``."""
        return self.content[WEIGHTS_FILE]

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """By name, such as ``base_model.model.SITE.lora_A.weight``; their values are read out of ``data``."""
        return {tensor.name: tensor for tensor in read_header(self.data)[0]}

    @property
    def seen(self) -> SeenImages | None:
        """The images that it was trained on; None when it does not say."""
        data = self.content.get(SEEN_FILE)
        return SeenImages.from_bytes(data) if data is not None else None

    def pair(self, site: str) -> tuple[np.ndarray, np.ndarray]:
        """A ``(R, D_in)`` and B ``(D_out, R)`` of a site in float32; the scaling is not folded in."""
        a, b = (self.tensors[f"base_model.model.{site}.lora_{factor}.weight"].read() for factor in "AB")
        return a, b


def with_weights(adapter: AdapterFiles | AdapterBytes) -> AdapterBytes:
    """An adapter with its weights; those that were let go are read again, if they are still the very ones.

    Raises:
        DamagedAdapter: They are not.
    """
    if isinstance(adapter, AdapterBytes):
        return adapter
    return read_adapter(adapter.folder, adapter.folder.name, adapter.records)


def read_adapter_files(folder: Path, name: str, expected: Mapping[str, FileRecord] | None = None) -> AdapterFiles:
    """Read and check a PEFT directory, and let its weights go again; see ``read_adapter``."""
    return read_adapter(folder, name, expected).files


def read_adapter(folder: Path, name: str, expected: Mapping[str, FileRecord] | None = None) -> AdapterBytes:
    """Read and check a PEFT directory. Each of its files is read once.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: For errors.
        expected: Sizes and digests that the files must have. Without any, ``exchange.seen`` is read where it is there.

    Raises:
        DamagedAdapter: A file is missing, a link, truncated, a pickle, not the expected one, holds NaN, or its shapes
            do not pair; all is listed.
        UnsupportedAdapter: It is sound but not plain LoRA.
    """
    with only_our_errors(name, folder):
        content = _read_files(folder, name, expected or {})
        settings = _read_config(content[CONFIG_FILE], name, folder)
        data = content[WEIGHTS_FILE]
        try:
            tensors = read_tensors(data)
        except ValueError as error:
            raise DamagedAdapter(name, str(folder), [str(error)]) from error
        problems: list[str] = []
        factors, head = _sort_tensors(tensors, settings.has_head, problems)
        problems += _rank_problems(settings, factors)
        problems += _size_problems(settings, factors)
        if problems:
            raise DamagedAdapter(name, str(folder), problems)
        records = {file: FileRecord.of(own) for file, own in content.items()}
        return AdapterBytes(AdapterFiles(folder, settings, factors, len(data), head, records), content)


@contextmanager
def only_our_errors(name: str, folder: Path) -> Iterator[None]:
    """Turn whatever reading a foreign folder may still raise into ``DamagedAdapter``.

    Args:
        name: Of the adapter, for the error.
        folder: Where it is.
    """
    try:
        yield
    except (LoraxError, MemoryError):
        raise
    except PatternRefused as error:
        raise UnsupportedAdapter(name, [str(error)]) from error
    except Exception as error:
        reason = quoted(str(error), 200)[1:-1] or "no reason given"
        raise DamagedAdapter(name, str(folder), [f"it cannot be read: {type(error).__name__}: {reason}"]) from error


def _read_files(folder: Path, name: str, expected: Mapping[str, FileRecord]) -> dict[str, bytes]:
    """Content of each file; all that is missing, none, or not as expected is listed."""
    content: dict[str, bytes] = {}
    problems = [f"{quoted(file)} is no file of an adapter" for file in expected if file not in _FILE_LIMITS]
    for file, limit in _FILE_LIMITS.items():
        if file == SEEN_FILE and file not in expected and (expected or not os.path.lexists(folder / file)):
            continue
        try:
            data = read_file(folder, file, limit)
        except ValueError as error:
            problems.append(str(error))
            continue
        if file in expected and FileRecord.of(data) != expected[file]:
            problems.append(f"{file} was changed")
        content[file] = data
    if SEEN_FILE in content and not problems:
        try:
            SeenImages.from_bytes(content[SEEN_FILE])
        except ValueError as error:
            problems.append(f"{SEEN_FILE}: {error}")
    if problems:
        raise DamagedAdapter(name, str(folder), list(dict.fromkeys(problems)))
    return content


def _read_config(data: bytes, name: str, folder: Path) -> LoraSettings:
    try:
        config = parse_config(data)
    except ValueError as error:
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE} {error}"]) from error
    problems = config_problems(config) if config.get("peft_type") == "LORA" else []
    if problems:
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE}: {problem}" for problem in problems])
    if unsupported := unsupported_features(config):
        fold = (
            "What changes weights only can be made plain LoRA: lorax-vlm exchange fold FOLDER NEW_FOLDER --model BASE"
        )
        raise UnsupportedAdapter(name, unsupported, "" if config.get("peft_type") in METHODS_NOT_FOLDED else fold)
    try:
        return read_settings(config)
    except PatternRefused:
        raise
    except ValueError as error:
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE}: {error}"]) from error


def _sort_tensors(
    tensors: Sequence[StoredTensor], with_head: bool, problems: list[str]
) -> tuple[dict[str, tuple[Factor, Factor]], dict[str, Factor]]:
    """The factors by site, and the head's tensors by name."""
    halves: dict[str, dict[str, Factor]] = {}
    head: dict[str, Factor] = {}
    unexpected = []
    for tensor in tensors:
        if with_head and (of_head := _HEAD_KEY.fullmatch(tensor.name)):
            factor = _read_factor(tensor, problems, dimensions=(1, 2))
            if factor is not None:
                head[of_head["name"]] = factor
            continue
        match = _KEY.fullmatch(tensor.name)
        if match is None or len(match["site"]) > MAX_NAME_CHARACTERS or not match["site"].isprintable():
            unexpected.append(tensor.name)
            continue
        factor = _read_factor(tensor, problems)
        if factor is not None:
            halves.setdefault(match["site"], {})[match["factor"]] = factor
    problems += advise_on_keys(unexpected)  # first, as of a long list only the beginning is shown
    problems += [f"unexpected tensor {quoted(name, 200)}" for name in unexpected]
    if not tensors:
        problems.append(f"{WEIGHTS_FILE} holds no tensors")
    if with_head and not head:
        problems.append(f"its configuration promises a head, {WEIGHTS_FILE} holds none")
    return _pair(halves, problems), head


def _read_factor(tensor: StoredTensor, problems: list[str], dimensions: tuple[int, ...] = (2,)) -> Factor | None:
    key = tensor.name
    if len(tensor.shape) not in dimensions or 0 in tensor.shape:
        shape = quoted(str(tensor.shape))[1:-1]
        problems.append(f"{key}: shape {shape}, expected a matrix{' or a vector' if 1 in dimensions else ''}")
        return None
    if not tensor.is_float:
        why = " in 16 or 32 bits; load it where it was made and save it once more" if "F8" in tensor.dtype else ""
        problems.append(f"{key}: type {tensor.dtype}, expected a floating-point type{why}")
        return None
    largest, wrong, count = 0.0, 0, 0
    for values in tensor.chunks():
        finite = np.isfinite(values)
        count += len(values)
        if finite.all():
            largest = max(largest, float(np.abs(values).max()))
        else:
            wrong += int((~finite).sum())
    if wrong:
        problems.append(f"{key}: {wrong} of {count} values are NaN or infinite")
    return Factor(tensor.shape, tensor.dtype, largest)


def _pair(halves: Mapping[str, Mapping[str, Factor]], problems: list[str]) -> dict[str, tuple[Factor, Factor]]:
    factors = {}
    for site, pair in sorted(halves.items()):
        if len(pair) != 2:
            problems.append(f"{site}: lora_{'B' if 'A' in pair else 'A'} is missing")
            continue
        a, b = pair["A"], pair["B"]
        if a.shape[0] != b.shape[1]:
            problems.append(f"{site}: A {a.shape} and B {b.shape} do not share a rank")
            continue
        factors[site] = (a, b)
    return factors


def _rank_problems(settings: LoraSettings, factors: Mapping[str, tuple[Factor, Factor]]) -> list[str]:
    problems = []
    for site, (a, _) in factors.items():
        expected = settings.rank(site)
        if a.shape[0] != expected:
            problems.append(f"{site}: rank {a.shape[0]}, the configuration says {expected}")
    return problems


def _size_problems(settings: LoraSettings, factors: Mapping[str, tuple[Factor, Factor]]) -> list[str]:
    """Updates whose numbers would not stay finite."""
    problems = []
    for site, (a, b) in factors.items():
        scale = abs(settings.scaling(site, a.shape[0]))
        largest = max(scale * b.largest, a.largest, scale * a.largest * b.largest * a.shape[0])
        if not largest < _LARGEST_UPDATE:
            problems.append(f"{site}: its update reaches {largest:.0e}, which is no sound number")
    return problems
