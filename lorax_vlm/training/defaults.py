"""What an adapter is made with when nobody says. No torch."""

from collections.abc import Mapping
from typing import Any

from lorax_vlm.adapters.recipe import RECIPES, Recipe
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.spec import site_groups
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import (
    MINI_CAPTION_CONFIGS,
    MINI_VQA_CONFIGS,
    OWN_CAPTION_CONFIGS,
    OWN_QUESTION_CONFIGS,
    TrainConfig,
)


def skill_recipe(entry: CatalogEntry, skill: Skill, *, own_data: bool = False) -> Recipe:
    """The usual recipe of an adapter for a skill: ``medium`` of one that captions, of others that of questions.

    A miniature knows drawn scenes, so for questions about others it must learn to see; one that has no image path of
    its own sees with what every recipe adapts. A full-size checkpoint has seen photographs by the million, and adapting
    its image path costs many times the time.

    Args:
        entry: The base.
        skill: What it is for.
        own_data: Whether it is trained on data of somebody's own, and not on the scenes.
    """
    if not skill.asked:
        return RECIPES["medium"]
    seeing = RECIPES["seeing"]
    groups = site_groups(entry.family)
    return seeing if own_data and entry.miniature and set(seeing.groups) <= groups.keys() else RECIPES["heavy"]


def question_config(entry: CatalogEntry, *, own_data: bool = False) -> TrainConfig:
    """The usual settings of a run for questions; arguments as for ``skill_recipe``."""
    if not entry.miniature:
        return TrainConfig()
    return (OWN_QUESTION_CONFIGS if own_data else MINI_VQA_CONFIGS)[entry.name]


def skill_config(entry: CatalogEntry, skill: Skill, *, own_data: bool = False) -> TrainConfig:
    """The usual settings of a run for a skill, on a base that can do it; ``own_data`` as for ``skill_recipe``."""
    if skill.asked or not entry.captions:
        return question_config(entry, own_data=own_data)
    if not entry.miniature:
        return TrainConfig()
    return (OWN_CAPTION_CONFIGS if own_data else MINI_CAPTION_CONFIGS)[entry.name]


def span(setting: str, *, own_data: bool = False) -> str:
    """From which to which value a setting of the miniatures goes, in words."""
    tables = (OWN_CAPTION_CONFIGS, OWN_QUESTION_CONFIGS) if own_data else (MINI_CAPTION_CONFIGS, MINI_VQA_CONFIGS)
    values = {getattr(config, setting) for table in tables for config in table.values()}
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def chosen_config(config: TrainConfig | Mapping[str, Any] | None, usual: TrainConfig) -> TrainConfig:
    """What is given: all settings, or changes of the usual ones; None: the usual ones.

    Raises:
        UsageError: It is neither, or there is no such setting.
    """
    if isinstance(config, Mapping):
        return usual.changed(config)
    if not isinstance(config, TrainConfig | None):
        raise UsageError(
            f"config must be a TrainConfig, or settings to change, {{'samples': 3}}; got {quoted(config)}."
        )
    return usual if config is None else config
