"""A run in pieces is the run in one: its end, its patience and its time are those of all pieces together."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TrainerState

from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.runs import write_at_once

_ELAPSED_FILE = "elapsed.json"


def logging_interval(eval_every: int) -> int:
    """Steps between training losses in the log, about a fifth of those between checkpoints.

    It divides them, because ``Trainer`` forgets at a checkpoint what it has summed up since the last loss in the log.

    >>> logging_interval(50), logging_interval(13), logging_interval(26)
    (10, 1, 2)
    """
    return next(steps for steps in range(max(1, eval_every // 5), 0, -1) if eval_every % steps == 0)


class RunClock:
    """How long a run has trained, in all of its pieces."""

    def __init__(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint, or begin."""
        self._before = read_elapsed(checkpoint) if checkpoint is not None else 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._before + time.monotonic() - self._since

    def keep(self, checkpoint: Path) -> None:
        """Write it into a checkpoint.

        Raises:
            PathError: It cannot be written.
        """
        write_at_once(checkpoint / _ELAPSED_FILE, json.dumps({"seconds": self.seconds}))


def read_elapsed(checkpoint: Path) -> float:
    """How long a run had trained at a checkpoint; 0 where an older version wrote it."""
    path = checkpoint / _ELAPSED_FILE
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.exists() else 0.0


@dataclass(frozen=True)
class Standing:
    """Where a run stands at a checkpoint."""

    state: TrainerState
    waited: int
    """Validations in a row that were no better."""

    def has_ended(self, config: TrainConfig) -> bool:
        """Whether a run of these settings takes no further step."""
        patient = config.patience is None or self.waited < config.patience
        return self.state.global_step >= config.max_steps or not patient


def read_standing(checkpoint: Path) -> Standing:
    """Of a checkpoint that ``Trainer`` wrote."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    kept = state.stateful_callbacks.get(EarlyStoppingCallback.__name__) or {}
    return Standing(state, kept.get("attributes", {}).get("early_stopping_patience_counter", 0))


def keep_patience(trainer: Trainer, waited: int) -> None:
    """Let early stopping go on from so many validations; ``Trainer`` begins it anew when it resumes."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, EarlyStoppingCallback):
            callback.early_stopping_patience_counter = waited
