"""What a transfer is made of when little is said: where from, under which name, with which data and how many steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.exchange.direction import Direction, TransferOptions
from lorax_vlm.exchange.report import TransferReport
from lorax_vlm.exchange.scene_data import scene_transfer_data
from lorax_vlm.exchange.swap import ExchangeReport, exchange_adapters
from lorax_vlm.exchange.transfer import QUICK_SHARE, transfer_adapter
from lorax_vlm.exchange.transfer_data import TransferData, read_transfer_data
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.settings import runs_dir
from lorax_vlm.skills import answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import chosen_config, skill_config
from lorax_vlm.training.progress import Show
from lorax_vlm.types import require_known

Images = str | Path | Sequence[Example]


class Wishes(TypedDict, total=False):
    """What may be said about an exchange."""

    unlabelled: Images | None
    """Images, perhaps with questions, that the target learns from the source's answers to: a folder or examples. None,
    without ``development``: scenes that no adapter was trained on, for miniatures' skills."""
    steps: int | None
    """Of the distillation. None: those of ``config``, else a quarter of the target's usual ones."""
    config: TrainConfig | Mapping[str, Any] | None
    """Other settings of the distillation, all or some. None: the target's defaults."""
    allow_partial: bool
    """Leave out what cannot be moved, instead of refusing."""
    progress: Show
    """True, the default: a progress bar. Or a ``training.progress.Progress`` that is told."""
    replace: bool
    """Make a new version when the name of a result exists; by default false."""


class TransferWishes(Wishes, total=False):
    """What may be said about a transfer: what may be said about an exchange, and by what it is chosen."""

    development: Images | None
    """Labelled data to choose with; nothing is trained on them. None: agreement with the source."""


def transfer(
    bases: Bases, name: str, target: str, new_name: str | None = None, **wishes: Unpack[TransferWishes]
) -> TransferReport:
    """Move an adapter to another base, measure the result, and store it if it is worth anything there.

    Args:
        bases: The door to both bases.
        name: Of the adapter; it stays as it is.
        target: Where to.
        new_name: Short name of the result. None: the source's.
        wishes: See ``TransferWishes``.

    Raises:
        TransferRefused: There is no way; nothing was changed.
        AdapterExists: The name is taken.
    """
    require_known(wishes, TransferWishes.__annotations__)
    data = read_transfer_data(wishes.get("unlabelled"), wishes.get("development"), bases.store.get(name))
    way = direction(bases, name, target, data, wishes, new_name)
    return transfer_adapter(bases, way, replace=wishes.get("replace", False))


def exchange(bases: Bases, name: str, other: str, **wishes: Unpack[Wishes]) -> ExchangeReport:
    """Move two adapters to each other's base: both results are stored, or neither.

    Args:
        bases: The door to both bases.
        name: Of an adapter.
        other: Of another one, on another base.
        wishes: See ``Wishes``.

    Raises:
        TransferRefused: One of them cannot be moved at all; nothing was changed.
        AdapterExists: A name is taken.
    """
    require_known(wishes, Wishes.__annotations__)
    data = read_transfer_data(wishes.get("unlabelled"), None)
    first, second = (own_base(bases, bases.store.get(key)) for key in (name, other))
    there, back = (direction(bases, key, target, data, wishes) for key, target in ((name, second), (other, first)))
    return exchange_adapters(bases, there, back, replace=wishes.get("replace", False))


def own_base(bases: Bases, stored: StoredAdapter) -> str:
    """A name for the base that an adapter was made for.

    Raises:
        LoraxError: It does not say.
    """
    base = stored.manifest.base
    if base is None:
        raise LoraxError(
            f"Adapter {stored.name!r} does not say which base it is for, as adapters of plain PEFT do not. Name the "
            "base to ask or measure it (base=, model= or --model); it cannot be moved or merged."
        )
    return bases.model_of(base.name)


def direction(
    bases: Bases, name: str, target: str, data: TransferData | None, wishes: Wishes, new_name: str | None = None
) -> Direction:
    """The way of an adapter to another base.

    Args:
        bases: The door to both bases.
        name: Of the adapter, perhaps with a version.
        target: Where it goes.
        data: What the transfer may look at. None: scenes, between miniatures.
        wishes: See ``Wishes``.
        new_name: Short name of the result. None: the source's.

    Raises:
        UsageError: Scenes say nothing about it, and there are no data.
    """
    stored = bases.store.get(name)
    source = own_base(bases, stored)
    own, other = bases.entry(source), bases.entry(target)
    config = _distillation(other, stored, wishes.get("steps"), wishes.get("config"))
    if data is None and own.miniature and other.miniature:
        data = scene_transfer_data(stored.manifest, captions=other.captions, config=config)
    short = new_name or stored.name.removeprefix(f"{own.name}.")
    options = TransferOptions(
        config,
        runs_dir() / other.name / f"transfer-{short}",
        allow_partial=wishes.get("allow_partial", False),
        progress=wishes.get("progress", True),
    )
    return Direction(name, source, target, f"{other.name}.{short}", data or TransferData(), options)


def _distillation(
    target: CatalogEntry, stored: StoredAdapter, steps: int | None, config: TrainConfig | Mapping[str, Any] | None
) -> TrainConfig:
    usual = skill_config(target, stored.manifest.skill or answer("general"))
    quick = chosen_config(config, usual.with_steps(max(1, round(QUICK_SHARE * usual.max_steps))))
    return quick.with_steps(steps) if steps is not None else quick
