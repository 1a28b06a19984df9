"""What is to be made: an adapter's skill, recipe, data and settings, refused here where they are odd."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.asking import Ask
from lorax_vlm.data.examples import DataSplits, Kind
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import TrainConfig


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter is to do, and how it is asked for it."""

    skill: Skill
    ask: Ask


@dataclass(frozen=True)
class AdapterOrder:
    """An adapter to be trained. Odd settings are refused here, before hours are spent on them."""

    name: str
    kind: AdapterKind
    recipe: Recipe
    splits: DataSplits
    config: TrainConfig
    skip_bad_rows: bool = False
    """Leave out examples whose texts do not fit the model, instead of refusing all."""

    def __post_init__(self) -> None:
        if not isinstance(self.config, TrainConfig):
            raise UsageError(f"config must be a TrainConfig, got {quoted(self.config)}.")


def by_name(what: str, given: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """What is given for each of several adapters: one for all, or by name.

    Raises:
        UsageError: It says nothing of one of them, or something of another, or no adapters are named.
    """
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
    template = entry.question_template if kind == "questions" else entry.caption_prompt
    way_out = "" if entry.captions else f"{entry.name} answers questions and cannot write captions."
    return splits.require_kind(kind, way_out).with_prompt(template)
