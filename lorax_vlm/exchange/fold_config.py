"""The configuration of an adapter of any method, made safe to give to PEFT: what it chooses is written out by name.

PEFT matches names of modules with the expressions of the file, and takes what it does not know for nothing. Here the
expressions are matched beforehand, in bounded time, and what is not known is refused.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from lorax_vlm.adapters.patterns import FullMatch, Machine
from lorax_vlm.adapters.peft_config import (
    ALL_LINEAR,
    HARMLESS_OPTIONS,
    MAX_RANK,
    METHODS_NOT_FOLDED,
    config_problems,
    read_settings,
)
from lorax_vlm.foreign import quoted

# What is more than other weights of linear layers.
_REFUSED = {
    "modules_to_save": "it brings whole modules",
    "trainable_token_indices": "it brings embeddings",
    "target_parameters": "it changes parameters that are no linear layer's",
    "layer_replication": "it repeats layers",
    "megatron_config": "it is for Megatron's layers",
    "alora_invocation_tokens": "it is in effect behind certain words only",
    "arrow_config": "it chooses among adapters by what it is asked",
}
# What chooses modules is written out by name; what says where things were is of no use.
_CHOOSING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_PLACES = ("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "runtime_config")
_MATCHED = ("rank_pattern", "alpha_pattern")
_PLAIN_KEY = re.compile(r"[\w.]{1,500}")
_LARGEST_NUMBER, _MOST_STEPS = 65_536, 100
_ANY_NUMBER = re.compile(r"seed|key")
_STEPS = re.compile(r"iter")
_STARTS = re.compile(r"pissa_niter_(\d{1,9})")


def method_of(config: Mapping[str, Any]) -> str:
    """What a configuration calls its method, for people."""
    name = config.get("peft_type")
    return "DoRA" if name == "LORA" and config.get("use_dora") else str(name) if isinstance(name, str) else quoted(name)


def named_config(
    config: Mapping[str, Any], modules: Collection[str], linear: Collection[str]
) -> tuple[dict[str, Any], list[str]]:
    """A configuration in which every module is named in full, and why it cannot be folded, if so.

    Args:
        config: As it is in the file.
        modules: Names of all modules of the base.
        linear: Of its linear layers.

    Raises:
        PatternRefused: An expression of it is not run here.
        ValueError: Something in it is no expression.
    """
    matched = {option: config[option] for option in _MATCHED if _is_matched(config, option)}
    choosing = {option: config[option] for option in _CHOOSING if config.get(option)}
    settings = {"r": 1, "lora_alpha": 1, **choosing, **matched}
    problems = [*_problems(config), *config_problems(settings, targets=False)]
    if problems:
        return {}, problems
    found = read_settings(settings)
    targets = config["target_modules"]
    candidates = linear if isinstance(targets, str) and targets.lower() == ALL_LINEAR else modules
    chosen = [name for name in candidates if found.selects(name)]
    if not chosen:
        return {}, ["its target_modules name no module of this base"]
    known = _options_of(str(config["peft_type"]))
    named = {key: value for key, value in config.items() if key in known and key not in (*_CHOOSING, *_PLACES)}
    named["target_modules"] = chosen
    if config.get("feedforward_modules"):
        is_one = _selector(config["feedforward_modules"])
        named["feedforward_modules"] = [name for name in chosen if is_one(name)]
    for option, own in (("rank_pattern", found.own_rank), ("alpha_pattern", found.own_alpha)):
        if option in matched:
            named[option] = {name: value for name in chosen if (value := own(name)) is not None}
    return named, []


def _options_of(kind: str) -> set[str]:
    return {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in set(PEFT_TYPE_TO_TUNER_MAPPING):
        yield f"peft_type is {quoted(kind)}, which PEFT {peft.__version__} does not know"
        return
    if kind in METHODS_NOT_FOLDED:
        yield f"{kind}: {METHODS_NOT_FOLDED[kind]}"
    elif not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[kind], BaseTuner):
        yield f"{kind}: it adds to what the model reads, not to the weights of linear layers"
    yield from (f"{option}: {reason}" for option, reason in _REFUSED.items() if config.get(option))
    known = _options_of(kind) | HARMLESS_OPTIONS
    for option, value in config.items():
        if option not in known and value:
            yield f"{quoted(option)} = {quoted(value)}: PEFT {peft.__version__} does not know it"
        yield from _odd_numbers(option, value)
        if option.endswith("_pattern") and option not in (*_MATCHED, "layers_pattern"):
            yield from _odd_keys(option, value)
    for option in _MATCHED:
        if config.get(option) and not _is_matched(config, option):
            yield from _odd_keys(option, config[option])
    if not config.get("target_modules"):
        yield "target_modules: it does not say which modules it changes"
    yield from _odd_start(config.get("init_lora_weights"))


def _odd_start(how: Any) -> Iterator[str]:
    found = _STARTS.fullmatch(how) if isinstance(how, str) else None
    if found is not None and int(found[1]) > _MOST_STEPS:
        yield f"init_lora_weights = {how}: at most {_MOST_STEPS} steps are taken"


def _odd_numbers(option: str, value: Any) -> Iterator[str]:
    """Numbers with which PEFT would fill memory, or never end."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _odd_numbers(f"{option}.{key}"[:200], part)
    elif isinstance(value, list):
        for part in value[:1000]:
            yield from _odd_numbers(option, part)
    elif isinstance(value, int) and not isinstance(value, bool) and not _ANY_NUMBER.search(option):
        rank = option in ("r", "init_r", "target_r") or "rank" in option
        limit = MAX_RANK if rank else _MOST_STEPS if _STEPS.search(option) else _LARGEST_NUMBER
        if abs(value) > limit:
            yield f"{quoted(option)[1:-1]} is {quoted(value)}, the limit is {limit:,}"


def _odd_keys(option: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        odd = next((key for key in value if not _PLAIN_KEY.fullmatch(key)), None)
        if odd is not None:
            yield f"{option}: {quoted(odd)} is more than a name; such patterns are not run here"


def _is_matched(config: Mapping[str, Any], option: str) -> bool:
    """Whether a pattern of values has the meaning that it has for LoRA: numbers by expression."""
    value = config.get(option)
    return isinstance(value, dict) and all(type(one) in (int, float) for one in value.values()) and bool(value)


def _selector(names: str | Sequence[str]) -> Callable[[str], bool]:
    if isinstance(names, str):
        return FullMatch(Machine(), names)
    return lambda name: any(name == one or name.endswith(f".{one}") for one in names)
