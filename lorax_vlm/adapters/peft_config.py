"""``adapter_config.json`` of plain LoRA: checked, and asked which modules it means and how it scales them. No torch.

What PEFT would do is done here without PEFT, which takes seconds to import; tests hold every rule against it.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lorax_vlm.adapters.pattern_nodes import PatternRefused
from lorax_vlm.adapters.patterns import FirstMatch, FullMatch, Machine
from lorax_vlm.foreign import parse_json, quoted
from lorax_vlm.models.spec import HEAD

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1024**2
MAX_RANK = 1024
ALL_LINEAR = "all-linear"
_OUTPUT_LAYER = "lm_head"
MAX_ALPHA = 1e9

HARMLESS_OPTIONS = frozenset({"_from_model_config", "transformers_version", "_name_or_path", "_commit_hash"})
"""What transformers' configurations leave behind."""

# Options whose value says nothing about what is computed, or that are read below. Any other option that is set makes
# the adapter unsupported: an unknown feature is never taken for plain LoRA.
_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("use_rslora", "rank_pattern", "alpha_pattern"),
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    # For weights that are stored transposed, which linear layers' are not: PEFT sets it back.
    "fan_in_fan_out",
    # Of features that are off, or of initialisations, which are over.
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *HARMLESS_OPTIONS,
}
PEFT_DEFAULTS: Mapping[str, Any] = {
    "bias": "none",
    "init_lora_weights": True,
    "lora_alpha": 8,
    "megatron_core": "megatron.core",
    "peft_type": "LORA",
    "qalora_group_size": 16,
    "r": 8,
}
"""PEFT's defaults, as far as they are set to anything; an option with its default is off."""
_HARMLESS_RUNTIME = {"ephemeral_gpu_offload"}
_PLAIN_INITIALISATIONS = (True, False, None, "eva", "orthogonal")
_PLAIN_IN_ANY_CASE = ("gaussian", "mica")
_LONG_PATTERN = 4096
_MOST_LAYER_LISTS = 50
_LAYER_LIST = re.compile(r"[\w.]{1,200}")
_FOLDABLE = re.compile(r"pissa|olora|loftq", re.IGNORECASE)
_NOT_IN_THE_FILE = re.compile(r"pissa_niter_\d+|corda|lora_ga", re.IGNORECASE)


_READ = "it adds to what the model reads, not to the weights of linear layers"
METHODS_NOT_FOLDED = {
    "XLORA": "it mixes other adapters by what is asked",
    "POLY": "it chooses among skills by the task that is asked",
    "SHADOW": "it runs a second network beside the base",
    "TRAINABLE_TOKENS": "it brings embeddings",
    **dict.fromkeys(("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING"), _READ),
    **dict.fromkeys(("P_TUNING", "PREFIX_TUNING"), _READ),
}
"""Methods of PEFT that cannot be made plain LoRA, and why."""


def unsupported_features(config: Mapping[str, Any]) -> list[str]:
    """Options in a PEFT configuration that are not plain LoRA, as readable lines."""
    if config.get("peft_type") != "LORA":
        return [f"peft_type {quoted(config.get('peft_type'))}; only LORA is supported"]
    features = [
        f"{quoted(option)[1:-1]} = {_shown(value)}"
        for option, value in config.items()
        if option not in _UNDERSTOOD and value and not _is_off(option, value)
    ]
    if config.get("bias", "none") != "none":
        features.append(f"bias = {quoted(config['bias'])}")
    how = config.get("init_lora_weights")
    if not (_is_one_of(how, _PLAIN_INITIALISATIONS) or str(how).lower() in _PLAIN_IN_ANY_CASE):
        features.append(f"init_lora_weights = {quoted(how)}{_way_out(how)}")
    return features


def _shown(value: Any) -> str:
    """A value short enough for a line; of lists and objects that are short, all of it."""
    text = repr(value) if isinstance(value, dict | list) and len(value) <= 4 else ""
    return text if text and len(text) <= 60 else quoted(value)


def _is_one_of(value: Any, known: tuple[Any, ...]) -> bool:
    return any(value is one or (type(value) is type(one) and value == one) for one in known)


def _is_off(option: str, value: Any) -> bool:
    if option == "modules_to_save":
        return bool(value == [HEAD])
    if option == "runtime_config":
        return isinstance(value, dict) and set(value) <= _HARMLESS_RUNTIME
    return option in PEFT_DEFAULTS and _is_one_of(value, (PEFT_DEFAULTS[option],))


def _way_out(how: Any) -> str:
    if isinstance(how, str) and _FOLDABLE.fullmatch(how):
        return ": it was trained on weights that this initialisation changed; lorax-vlm exchange fold makes it plain"
    if isinstance(how, str) and _NOT_IN_THE_FILE.fullmatch(how):
        return (
            ": it was trained on weights that this initialisation changed, and the file does not say how; "
            "save it once more with PEFT's path_initial_model_for_weight_conversion"
        )
    return ""


@dataclass(frozen=True, eq=False)
class LoraSettings:
    """Ranks, scales and modules of a checked configuration."""

    config: Mapping[str, Any]
    """All of it, as it is in the file."""
    _targets: Callable[[str], bool]
    _excludes: Callable[[str], bool]
    _ranks: "_Values"
    _alphas: "_Values"
    _layers: frozenset[int] | None
    _layer_patterns: tuple[re.Pattern[str], ...]

    @property
    def has_head(self) -> bool:
        """Whether it promises a head of its own."""
        return bool(self.config.get("modules_to_save"))

    def rank(self, site: str) -> int:
        """The rank of a site."""
        return int(self.own_rank(site) or self.config["r"])

    def own_rank(self, site: str) -> int | None:
        """The rank that a pattern gives a site; None where none does."""
        found = self._ranks.at(site)
        return int(found) if found is not None else None

    def own_alpha(self, site: str) -> float | None:
        """The alpha that a pattern gives a site; None where none does."""
        return self._alphas.at(site)

    def scaling(self, site: str, rank: int) -> float:
        """What the product of a site's factors is multiplied by: alpha / rank, rank-stabilised alpha / sqrt(rank)."""
        alpha = self.own_alpha(site) or self.config.get("lora_alpha", rank)
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def selects(self, name: str) -> bool:
        """Whether it names a linear layer; the rules are PEFT's ``check_target_module_exists``."""
        if self._excludes(name) or (self.has_head and _is_part_of(HEAD, name)):
            return False
        if not self._targets(name):
            return False
        if self._layers is None or not isinstance(self._targets, _Names) or name in self._targets.names:
            return True
        found = next((match for pattern in self._layer_patterns if (match := pattern.match(name))), None)
        return found is not None and int(found[1]) in self._layers


def _is_part_of(module: str, name: str) -> bool:
    return f".{module}." in f".{name}."


@dataclass(frozen=True, eq=False)
class _Values:
    """Numbers by pattern."""

    values: tuple[float, ...] = ()
    first: FirstMatch | None = None

    @classmethod
    def of(cls, machine: Machine, values: Mapping[str, float] | None) -> "_Values":
        return cls(tuple(values.values()), FirstMatch(machine, list(values))) if values else cls()

    def at(self, site: str) -> float | None:
        place = self.first(site) if self.first is not None else None
        return None if place is None else self.values[place]


def parse_config(data: bytes) -> dict[str, Any]:
    """The configuration in a file, not checked yet.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        config = parse_json(data)
    except ValueError as error:
        if data.startswith(b"version https://git-lfs"):
            raise ValueError(LFS_POINTER) from None
        raise ValueError(f"is {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"holds {quoted(config)}, expected an object")
    return config


LFS_POINTER = "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull"


def config_problems(config: Mapping[str, Any], *, targets: bool = True) -> list[str]:
    """What is wrong with the values of a plain LoRA configuration.

    Args:
        config: As it is in the file.
        targets: Whether it must say which modules it adapts.
    """
    problems = []
    if not _is_rank(config.get("r")):
        problems.append(f"r is {quoted(config.get('r'))}, expected a whole number from 1 to {MAX_RANK}")
    if not _is_scale(config.get("lora_alpha")):
        alpha = quoted(config.get("lora_alpha"))
        problems.append(f"lora_alpha is {alpha}, expected a number other than 0, at most {MAX_ALPHA:.0e} either way")
    expected = "expected a pattern or a list of names"
    for option, optional in (("target_modules", not targets), ("exclude_modules", True), ("layers_pattern", True)):
        if not _is_selector(config.get(option), optional):
            problems.append(f"{option} is {quoted(config.get(option))}, {expected}")
    for option, is_value in (("rank_pattern", _is_rank), ("alpha_pattern", _is_scale)):
        if not _is_pattern(config.get(option), is_value):
            problems.append(f"{option} is {quoted(config.get(option))}, expected numbers by pattern")
    layers = config.get("layers_to_transform")
    if not (layers is None or _is_layer(layers) or (isinstance(layers, list) and all(map(_is_layer, layers)))):
        problems.append(f"layers_to_transform is {quoted(layers)}, expected whole numbers")
    return problems


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_scale(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return value != 0 and abs(value) <= MAX_ALPHA


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pattern(value: object, is_value: Callable[[object], bool]) -> bool:
    if not value:
        return value is None or value == {}
    return isinstance(value, dict) and all(key and is_value(one) for key, one in value.items())


def _is_selector(value: object, optional: bool) -> bool:
    if not value:
        return optional
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) and one for one in value))


def read_settings(config: Mapping[str, Any]) -> LoraSettings:
    """A checked configuration, ready to be asked.

    Raises:
        PatternRefused: A pattern of it is not run here.
        ValueError: A pattern of it is no regular expression.
    """
    machine = Machine()
    with _about("target_modules"):
        targets = _targets(machine, config.get("target_modules"))
    with _about("exclude_modules"):
        excluded = _selector(machine, config.get("exclude_modules"))
    with _about("rank_pattern"):
        ranks = _Values.of(machine, config.get("rank_pattern"))
    with _about("alpha_pattern"):
        alphas = _Values.of(machine, config.get("alpha_pattern"))
    with _about("layers_pattern"):
        lists = _layer_patterns(config.get("layers_pattern"))
    return LoraSettings(config, targets, excluded, ranks, alphas, _layers(config.get("layers_to_transform")), lists)


@contextmanager
def _about(option: str) -> Iterator[None]:
    """Say which option a pattern is of, and whether it is one at all."""
    try:
        yield
    except PatternRefused as error:
        if error.pattern and not _is_expression(error.pattern):
            raise ValueError(f"{option}: {quoted(error.pattern)} is no regular expression") from None
        raise PatternRefused(error.pattern, error.reason, option) from None


def _is_expression(pattern: str) -> bool:
    """Whether a pattern that is not run here means anything at all; a long one is given the benefit of the doubt."""
    try:
        return len(pattern) > _LONG_PATTERN or re.compile(pattern) is not None
    except Exception:  # errors of its own, of recursion, of numbers that are too large
        return False


class _Names:
    """Names of modules, or their ends behind a dot."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)

    def __call__(self, name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[place:]) in self.names for place in range(len(parts)))


def _targets(machine: Machine, targets: str | list[str] | None) -> Callable[[str], bool]:
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return lambda name: not _is_part_of(_OUTPUT_LAYER, name)
    return _selector(machine, targets)


def _selector(machine: Machine, selector: str | list[str] | None) -> Callable[[str], bool]:
    return FullMatch(machine, selector) if isinstance(selector, str) and selector else _Names(selector or ())


def _layers(layers: int | list[int] | None) -> frozenset[int] | None:
    return None if layers in (None, []) else frozenset([layers] if isinstance(layers, int) else layers or ())


def _layer_patterns(patterns: str | list[str] | None) -> tuple[re.Pattern[str], ...]:
    names = [patterns] if isinstance(patterns, str) and patterns else patterns or []
    for name in names:
        if not _LAYER_LIST.fullmatch(name) or len(names) > _MOST_LAYER_LISTS:
            raise PatternRefused(name, "layers_pattern is understood as the name of a list of layers, such as layers")
    # The first numbered part counts, as in PEFT.
    before = [rf"(?:^|.*?\.){name}" for name in names] or [r".*?\.[^.]*"]
    return tuple(re.compile(rf"{part}\.(\d+)\.") for part in before)
