"""What is to be made: an adapter's skill, recipe, data and settings, refused here where they are odd."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict, Unpack

from lorax_vlm.adapters.recipe import Recipe, chosen_recipe, get_recipe
from lorax_vlm.asking import Ask, ask_for, require_skill, trained_template
from lorax_vlm.data.examples import DataSplits, Kind
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.data.world.skills import require_scenes, skill_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import chosen_config, skill_config, skill_recipe
from lorax_vlm.training.progress import Show
from lorax_vlm.types import require_known


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter is to do, and how it is asked for it."""

    skill: Skill
    ask: Ask


@dataclass(frozen=True)
class AdapterOrder:
    """An adapter to be trained."""

    name: str
    kind: AdapterKind
    recipe: Recipe
    splits: DataSplits
    config: TrainConfig
    skip_bad_rows: bool = False
    """Leave out examples whose texts do not fit the model, instead of refusing all."""
    start: str | None = None
    """The adapter that it begins with, in one version."""


def orders_by_name(
    order: Callable[..., AdapterOrder], names: Mapping[str, str], data: Any, config: Any, **wanted: Any
) -> list[AdapterOrder]:
    """An order for each of several adapters.

    Args:
        order: Makes one, of a name, what it is for, and ``data``, ``config`` and ``wanted``.
        names: What each is for, by its name.
        data: One for all, or by name.
        config: One for all, or by name; changes of what is usual are for all, unless they go by name.
        wanted: For all.

    Raises:
        UsageError: ``data`` or ``config`` goes by name and says nothing of one, or something of another.
    """
    sources = _by_name("data", data, names)
    configs = _by_name("config", config, names) if _goes_by_name(config, names) else dict.fromkeys(names, config)
    return [order(name, word, data=sources[name], config=configs[name], **wanted) for name, word in names.items()]


def _goes_by_name(config: Any, names: Mapping[str, str]) -> bool:
    """Whether settings are those of each adapter, rather than changes for all."""
    if not isinstance(config, Mapping):
        return False
    return any(key in names or isinstance(value, Mapping | TrainConfig) for key, value in config.items())


def _by_name(what: str, given: Any, names: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(names, Mapping):
        raise UsageError(f"What to train is named, such as {{'counting': 'counting'}}, got {quoted(names)}.")
    asked = list(names)
    if not isinstance(given, Mapping):
        return dict.fromkeys(asked, given)
    if missing := [name for name in asked if name not in given]:
        raise UsageError(f"{what} says nothing of {quoted(missing[0])}; give it None for the base's defaults.")
    if unknown := [name for name in given if name not in asked]:
        raise UsageError(f"{what} names {quoted(unknown[0])}, which is not to be trained: {', '.join(asked)}.")
    return dict(given)


def measured_at_once(orders: Sequence[AdapterOrder]) -> list[AdapterOrder]:
    """The same, measured at the same steps: a run measures all of its adapters as often as one of them wants it."""
    every = min(order.config.eval_every for order in orders)
    return [dataclasses.replace(o, config=dataclasses.replace(o.config, eval_every=every)) for o in orders]


def training_examples(
    entry: CatalogEntry,
    kind: Kind,
    data: str | Path | DataSplits | None,
    drawn: Callable[[], DataSplits] | None,
    *,
    skip_bad_rows: bool = False,
) -> DataSplits:
    """The examples to train on, with the base's prompt.

    Args:
        entry: The base.
        kind: What they must teach.
        data: Splits, or what ``read_data`` recognises. None: drawn scenes, which a miniature has.
        drawn: Draws them.
        skip_bad_rows: Leave malformed rows out.

    Raises:
        DataError: The data have malformed rows, or are of the other kind.
        UsageError: There is no ``data`` and this base has no scenes.
    """
    if isinstance(data, DataSplits):
        splits = data.require_trainable()
    elif data is not None:
        splits = read_data(data, skip_bad_rows=skip_bad_rows)
    elif entry.miniature and drawn is not None:
        splits = drawn()
    else:
        raise UsageError(f"{entry.name} has no built-in examples. Pass data=FOLDER with a metadata.jsonl.")
    way_out = "" if entry.captions else f"{entry.name} answers questions and cannot write captions."
    return splits.require_kind(kind, way_out).with_prompt(trained_template(entry, kind))


Data = str | Path | DataSplits


class Taught(TypedDict, total=False):
    """What may be said of how an adapter is taught; what is not is as usual for the base and the skill."""

    data: Data | None
    """What ``read_data`` recognises, or splits. None: drawn scenes, where the base knows them."""
    config: TrainConfig | Mapping[str, Any] | None
    """Steps and rates: all of them, or changes of what is usual for the base, ``{"max_steps": 500}``."""
    skip_bad_rows: bool
    """Leave out malformed rows, and texts that do not fit the model."""


class Making(Taught, total=False):
    """What may be said of the making of an adapter: how it is taught, whether it replaces one, and who is told."""

    replace: bool
    """Make a new version when the name exists; by default false."""
    progress: Show
    """True, the default: a progress bar. Or a ``training.progress.Progress`` that is told."""


class Wanted(Taught, total=False):
    """What may be said of an adapter that is to be made: how it is taught, and what is adapted."""

    recipe: str | Recipe | Mapping[str, Any] | None
    """``light``, ``medium``, ``heavy``, ``portable``, ``seeing``, one of your own, or changes of what is usual for the
    base and the skill, ``{"rank": 32}``; see ``adapters.recipe.change_recipe``."""
    init_from: str | None
    """An adapter of this base to begin with, whose recipe is the usual one then. None: the identity."""


def as_splits(data: Data) -> DataSplits:
    """Data to measure with: splits, or what ``read_parts`` recognises."""
    return data if isinstance(data, DataSplits) else read_parts(data)


def examples_for(entry: CatalogEntry, skill: Skill, data: Data | None, *, skip_bad_rows: bool = False) -> DataSplits:
    """The examples that teach a skill to a base; see ``training_examples``.

    Raises:
        DataError: The data have malformed rows, or are of the other kind.
        UsageError: There is no ``data`` and this base has no scenes, or they teach no such skill, or the base cannot
            learn it.
    """
    require_skill(entry, skill)
    kind: Kind = "questions" if skill.asked else "captions"
    drawn = partial(skill_splits, require_scenes(skill)) if data is None and entry.miniature else None
    return training_examples(entry, kind, data, drawn, skip_bad_rows=skip_bad_rows)


def make_order(entry: CatalogEntry, name: str, skill: Skill, **wanted: Unpack[Wanted]) -> AdapterOrder:
    """An order with what is wanted, and the usual for what is not.

    Args:
        entry: The base, with its prompts.
        name: In the store.
        skill: What it is for.
        wanted: See ``Wanted``.

    Raises:
        DataError, UsageError: As ``examples_for``.
    """
    kind, recipe, config = usual(entry, skill, **wanted)  # before data are read
    data, skip_bad_rows = wanted.get("data"), wanted.get("skip_bad_rows", False)
    splits = examples_for(entry, skill, data, skip_bad_rows=skip_bad_rows)
    return AdapterOrder(name, kind, recipe, splits, config, skip_bad_rows)


def usual(entry: CatalogEntry, skill: Skill, **wanted: Unpack[Wanted]) -> tuple[AdapterKind, Recipe, TrainConfig]:
    """How an adapter for a skill is asked, its recipe and its settings: what is wanted, or the usual.

    Raises:
        UsageError: Something unknown is wanted, or what is no recipe or no settings, or the base cannot learn it.
    """
    require_known(wanted, Wanted.__annotations__)
    require_skill(entry, skill)
    own_data = wanted.get("data") is not None
    recipe = chosen_recipe(wanted.get("recipe"), get_recipe(skill_recipe(entry, skill, own_data=own_data)))
    config = chosen_config(wanted.get("config"), skill_config(entry, skill, own_data=own_data))
    return AdapterKind(skill, ask_for(entry, skill)), recipe, config
