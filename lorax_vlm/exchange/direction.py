"""The way of an adapter to another base, and how it is gone."""

from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.exchange.transfer_data import TransferData
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.progress import Show


@dataclass(frozen=True)
class TransferOptions:
    """How a transfer is done."""

    config: TrainConfig
    """For distillation; ``max_steps`` are those asked for."""
    run_dir: Path
    """Below it a folder is made for checkpoints and candidates, and removed again."""
    allow_partial: bool = False
    """Leave out what cannot be moved, instead of refusing."""
    distil: bool = True
    """False: only take over weights."""
    progress: Show = True


@dataclass(frozen=True)
class Direction:
    """An adapter, where it goes, and what the transfer may look at."""

    name: str
    """In the store."""
    source: str
    """Its own base."""
    target: str
    new_name: str
    data: TransferData
    options: TransferOptions
