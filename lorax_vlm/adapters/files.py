"""A PEFT LoRA directory, read and checked before any of it reaches a model. No torch.

Everything wrong is reported at once. Weights are read as bytes with safetensors; a pickle is never opened.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from lorax_vlm.adapters.integrity import hash_file
from lorax_vlm.adapters.manifest import FileRecord
from lorax_vlm.errors import DamagedAdapter, UnsupportedAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILES = ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "adapter_model.pkl")
MAX_WEIGHTS_BYTES = 4 * 1024**3
MAX_CONFIG_BYTES = 1024**2
MAX_RANK = 1024

_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<factor>[AB])\.weight")
HEAD = "classifier"
"""The one module that may travel whole with an adapter: ViLT's head over its answers."""
_HEAD_KEY = re.compile(rf"base_model\.model\.(?P<name>{HEAD}\.\d+\.(?:weight|bias))")
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}

# Options of a LoRA configuration that are understood here, or that say nothing about what is computed. Any other
# option that is set makes the adapter unsupported: an unknown feature is never taken for plain LoRA.
_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("use_rslora", "rank_pattern", "alpha_pattern"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base's own weights.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", None)


@dataclass(frozen=True)
class Factor:
    """One matrix of an adapter: its shape and storage, and what was found in its values."""

    shape: tuple[int, ...]
    dtype: str
    zero: bool


@dataclass(frozen=True)
class AdapterFiles:
    """A sound PEFT LoRA directory."""

    folder: Path
    config: Mapping[str, Any]
    factors: Mapping[str, tuple[Factor, Factor]]
    """Per site the factors A ``(R, D_in)`` and B ``(D_out, R)``."""
    size_bytes: int
    head: Mapping[str, Factor] = field(default_factory=dict)
    """Tensors of an own head by name, such as ``classifier.3.weight``; empty without one."""

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
        return scaling_of(self.config, site, self.factors[site][0].shape[0])

    def shape(self, site: str) -> tuple[int, int]:
        """``(D_out, D_in)`` of the matrix that a site's factors change."""
        a, b = self.factors[site]
        return b.shape[0], a.shape[1]

    @property
    def changes_nothing(self) -> bool:
        """Whether every low-rank product is zero because A or B is, and there is no head."""
        return not self.head and all(a.zero or b.zero for a, b in self.factors.values())


def read_adapter_files(folder: Path, name: str, expected: Mapping[str, FileRecord] | None = None) -> AdapterFiles:
    """Read and check a PEFT directory.

    Args:
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        name: For errors.
        expected: Sizes and digests that the files must have.

    Raises:
        DamagedAdapter: A file is missing, a link, truncated, a pickle, not the expected one, holds NaN, or its shapes
            do not pair; all is listed.
        UnsupportedAdapter: It is sound but not plain LoRA.
    """
    changed = [f"{file} was changed" for file, record in (expected or {}).items() if not _is(folder / file, record)]
    links = [f"{file} is a link" for file in (CONFIG_FILE, WEIGHTS_FILE) if (folder / file).is_symlink()]
    if changed or links:
        raise DamagedAdapter(name, str(folder), [*changed, *links])
    config = _read_config(folder, name)
    unsupported = unsupported_features(config)
    if unsupported:
        raise UnsupportedAdapter(name, unsupported)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickles = [file for file in PICKLE_FILES if (folder / file).exists()]
        reason = f"{WEIGHTS_FILE} does not exist"
        if pickles:
            reason += f"; {pickles[0]} is a pickle, which can run code when opened, so it is never read"
        raise DamagedAdapter(name, str(folder), [reason])
    size = path.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise DamagedAdapter(
            name, str(folder), [f"{WEIGHTS_FILE} has {size:,} bytes, the limit is {MAX_WEIGHTS_BYTES:,}"]
        )
    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise DamagedAdapter(name, str(folder), [f"{WEIGHTS_FILE} is truncated or not safetensors: {error}"]) from error
    problems: list[str] = []
    factors, head = _sort_tensors(tensors, bool(config.get("modules_to_save")), problems)
    problems += _rank_problems(config, factors)
    if problems:
        raise DamagedAdapter(name, str(folder), problems)
    return AdapterFiles(folder, config, factors, size, head)


def _is(path: Path, record: FileRecord) -> bool:
    return path.is_file() and hash_file(path) == record


def _sort_tensors(
    tensors: Sequence[tuple[str, Mapping[str, Any]]], with_head: bool, problems: list[str]
) -> tuple[dict[str, tuple[Factor, Factor]], dict[str, Factor]]:
    """The factors by site, and the head's tensors by name."""
    halves: dict[str, dict[str, Factor]] = {}
    head: dict[str, Factor] = {}
    for key, tensor in tensors:
        if with_head and (of_head := _HEAD_KEY.fullmatch(key)):
            factor = _read_factor(key, tensor, problems, dimensions=(1, 2))
            if factor is not None:
                head[of_head["name"]] = factor
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            problems.append(f"unexpected tensor {key!r}")
            continue
        factor = _read_factor(key, tensor, problems)
        if factor is not None:
            halves.setdefault(match["site"], {})[match["factor"]] = factor
    if not tensors:
        problems.append(f"{WEIGHTS_FILE} holds no tensors")
    if with_head and not head:
        problems.append(f"its configuration promises a head, {WEIGHTS_FILE} holds none")
    return _pair(halves, problems), head


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE} is larger than {MAX_CONFIG_BYTES:,} bytes"])
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE} does not exist"]) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE} is not JSON: {error}"]) from error
    if not isinstance(config, dict):
        raise DamagedAdapter(name, str(folder), [f"{CONFIG_FILE} holds {type(config).__name__}, expected an object"])
    problems = []
    if config.get("peft_type") == "LORA":
        if not _is_rank(config.get("r")):
            problems.append(f"{CONFIG_FILE}: r is {config.get('r')!r}, expected a whole number from 1 to {MAX_RANK}")
        if not _is_scale(config.get("lora_alpha")):
            problems.append(
                f"{CONFIG_FILE}: lora_alpha is {config.get('lora_alpha')!r}, expected a number other than 0"
            )
        problems += [
            f"{CONFIG_FILE}: {option} is {config.get(option)!r}, expected a pattern or a list of names"
            for option in ("target_modules", "exclude_modules")
            if not _is_selector(config.get(option), optional=option == "exclude_modules")
        ]
        problems += [
            f"{CONFIG_FILE}: {option} is {config.get(option)!r}, expected numbers by pattern"
            for option, is_value in (("rank_pattern", _is_rank), ("alpha_pattern", _is_scale))
            if not _is_pattern(config.get(option), is_value)
        ]
    if problems:
        raise DamagedAdapter(name, str(folder), problems)
    return config


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_scale(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value != 0


def _is_pattern(value: object, is_value: Callable[[object], bool]) -> bool:
    if not value:
        return value is None or value == {}
    return isinstance(value, dict) and all(_is_selector(k, optional=False) and is_value(v) for k, v in value.items())


def _is_selector(value: object, *, optional: bool) -> bool:
    if not value:
        return optional
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error:
            return False
        return True
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def unsupported_features(config: Mapping[str, Any]) -> list[str]:
    """Options in a PEFT configuration that are not plain LoRA, as readable lines."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type {config.get('peft_type')!r}; only LORA is supported"]
    features = [
        f"{option} = {value!r}"
        for option, value in config.items()
        if option not in _UNDERSTOOD and value and (option, value) != ("modules_to_save", [HEAD])
    ]
    if config.get("bias", "none") != "none":
        features.append(f"bias = {config['bias']!r}")
    if config.get("init_lora_weights") not in _PLAIN_INITIALISATIONS:
        features.append(f"init_lora_weights = {config['init_lora_weights']!r}")
    return features


def _read_factor(
    key: str, tensor: Mapping[str, Any], problems: list[str], dimensions: tuple[int, ...] = (2,)
) -> Factor | None:
    shape, dtype, data = tuple(tensor["shape"]), tensor["dtype"], tensor["data"]
    if len(shape) not in dimensions or 0 in shape:
        problems.append(f"{key}: shape {shape}, expected a matrix{' or a vector' if 1 in dimensions else ''}")
        return None
    if dtype == "BF16":
        values = (np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype in _NUMPY_TYPES:
        values = np.frombuffer(data, dtype=_NUMPY_TYPES[dtype])
    else:
        problems.append(f"{key}: type {dtype}, expected a floating-point type")
        return None
    if not np.isfinite(values).all():
        problems.append(f"{key}: {int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite")
    return Factor(shape, dtype, not values.any())


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


def pattern_value(pattern: Mapping[str, float] | None, site: str, default: float) -> float:
    """What ``rank_pattern`` or ``alpha_pattern`` says of a site; PEFT lets it name the end of a module's name."""
    return next(
        (value for key, value in (pattern or {}).items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", site)), default
    )


def scaling_of(config: Mapping[str, Any], site: str, rank: int) -> float:
    """What a PEFT configuration multiplies a site's product by; without an alpha it is the rank."""
    alpha = pattern_value(config.get("alpha_pattern"), site, config.get("lora_alpha", rank))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _rank_problems(config: Mapping[str, Any], factors: Mapping[str, tuple[Factor, Factor]]) -> list[str]:
    problems = []
    for site, (a, _) in factors.items():
        expected = pattern_value(config.get("rank_pattern"), site, config["r"])
        if a.shape[0] != expected:
            problems.append(f"{site}: rank {a.shape[0]}, the configuration says {expected}")
    return problems
