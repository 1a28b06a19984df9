"""A training run on disk: how it was started, where it can be continued, what it gave.

The record is written in one step and checkpoints are whole or passed over, so a run may be killed at any moment.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorax_vlm.errors import NothingToResume, TrainingError
from lorax_vlm.settings import process_rank

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
CURVE_FILE = "curve.png"
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves."""

    folder: Path
    """A PEFT directory."""
    curve: Path
    steps: int
    best_validation_loss: float
    first_validation_loss: float
    time_s: float
    trainable_parameters: int
    history: Sequence[Mapping[str, Any]]

    def record(self) -> dict[str, Any]:
        """The figures that belong into the adapter's manifest."""
        return {
            "steps": self.steps,
            "first_validation_loss": self.first_validation_loss,
            "best_validation_loss": self.best_validation_loss,
            "time_s": round(self.time_s, 1),
            "trainable_parameters": self.trainable_parameters,
        }


@dataclass(frozen=True)
class Run:
    """A run on disk: how it was started, and where it can be continued."""

    folder: Path
    settings: Mapping[str, Any]
    first_validation_losses: Mapping[str, float] = field(default_factory=dict)
    """By adapter."""
    checkpoint: Path | None = None
    results: Mapping[str, TrainingResult] = field(default_factory=dict)
    """By adapter; there when the run ended, perhaps without having been stored."""

    def recorded(self, **changes: Any) -> "Run":
        """The run with something new known of it, written in one step by the first process."""
        run = dataclasses.replace(self, **changes)
        if process_rank() > 0:
            return run
        record = {
            "settings": run.settings,
            "first_validation_losses": dict(run.first_validation_losses),
            "results": {name: dataclasses.asdict(result) for name, result in run.results.items()},
        }
        scratch = run.folder / f".{RUN_FILE}"
        scratch.write_text(json.dumps(record, indent=2, default=str), encoding="utf-8")
        os.replace(scratch, run.folder / RUN_FILE)
        return run


def prepare_run(run_dir: Path, settings: Mapping[str, Any], resume: bool) -> Run:
    """Open a new run, or the one in ``run_dir`` to be continued. Of several processes only the first changes files.

    Raises:
        NothingToResume: ``resume`` without a complete checkpoint.
        TrainingError: ``resume`` with other settings than those the run was started with.
    """
    complete = [path for path in _checkpoints(run_dir) if _is_complete(path)]
    first = process_rank() == 0
    if not resume:
        if complete and first:
            logger.warning("The unfinished run in %s is started over; --resume would have continued it.", run_dir)
        if first:
            discard_checkpoints(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        return Run(run_dir, settings)
    if not complete or not (run_dir / RUN_FILE).is_file():
        raise NothingToResume(str(run_dir))
    record = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    started = record["settings"]
    differing = [key for key in settings if started.get(key) != settings[key]]
    if differing:
        changes = "\n".join(f"  {key}: started with {started.get(key)}, now {settings[key]}" for key in differing)
        raise TrainingError(f"The run in {run_dir} has other settings:\n{changes}\nStart over without --resume.")
    for path in _checkpoints(run_dir):
        if first and path not in complete:
            shutil.rmtree(path)
    results = {
        name: TrainingResult(**{**ended, "folder": Path(ended["folder"]), "curve": Path(ended["curve"])})
        for name, ended in record["results"].items()
    }
    return Run(run_dir, settings, record["first_validation_losses"], complete[-1], results)


def discard_checkpoints(run_dir: Path) -> None:
    """Remove what only a continued run would need."""
    for path in _checkpoints(run_dir):
        shutil.rmtree(path)


def _checkpoints(run_dir: Path) -> list[Path]:
    found = [path for path in run_dir.glob(f"{_CHECKPOINT}*") if path.name.removeprefix(_CHECKPOINT).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_CHECKPOINT)))


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes ``trainer_state.json`` last: if it parses, everything before it is whole."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return bool(state.get("global_step") == int(checkpoint.name.removeprefix(_CHECKPOINT)))
