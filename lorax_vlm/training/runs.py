"""A training run on disk: how it was started, where it can be continued, what it gave.

One process at a time holds a run's folder. The record is written in one step, and a checkpoint counts only when every
file of it is, byte for byte, what was written: so a run may be killed, and its machine lose power, at any moment.

No torch.
"""

import dataclasses
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorax_vlm.adapters.integrity import hash_file
from lorax_vlm.errors import NothingToResume, PathError, RunInUse, TrainingError
from lorax_vlm.paths import naming, remove_abandoned, written_whole
from lorax_vlm.processes import Worker
from lorax_vlm.settings import process_rank

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
NOTES_FILE = "streams.json"
"""What was read of streams, in a checkpoint and in the folder of a finished run; see ``stream_notes.py``."""
CURVE_FILE = "curve.png"
REJECTED_FOLDER = "rejected"
"""Weights that were trained and then not chosen, because the base alone has the lower validation loss."""
_STILL_FALLING = 0.05
_FULL_BYTES = 2**20
_UNKNOWN_DATA = '"sha256": null'
_CHECKPOINT = "checkpoint-"
_SEAL = "complete.json"
_STATE = "trainer_state.json"  # as ``Trainer`` calls it
LOCK_FILE, HOLDER_FILE = ".lock", ".holder"


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves."""

    folder: Path
    """A PEFT directory."""
    curve: Path
    steps: int
    best_step: int
    """Step whose weights were chosen, by validation loss; 0 where no step was better than the beginning."""
    best_validation_loss: float
    first_validation_loss: float
    """Before the first step: of the base alone, unless the adapter began with given updates."""
    time_s: float
    trainable_parameters: int
    history: Sequence[Mapping[str, Any]]

    @property
    def last_training_loss(self) -> float | None:
        """Mean training loss per target over the last fifth of the run; None where nothing was logged."""
        losses = [row["loss"] for row in self.history if "loss" in row]
        last = losses[-max(1, len(losses) // 5) :]
        return sum(last) / len(last) if last else None

    @property
    def still_falling(self) -> bool:
        """Whether the last step was the best, and its validation loss a twentieth below the one measured before.

        Where the last interval is shorter than the one before, less is enough in proportion.
        """
        points = [(0, self.first_validation_loss)]
        points += [(row["step"], row["eval_loss"]) for row in self.history if "eval_loss" in row and row["step"] > 0]
        if len(points) < 2 or self.best_step != self.steps:
            return False
        (before, former), (last, loss) = points[-2:]
        usual = before - points[-3][0] if len(points) > 2 else last
        return loss < (1 - _STILL_FALLING * min(1.0, (last - before) / usual)) * former

    def record(self) -> dict[str, Any]:
        """The figures that belong into the adapter's manifest."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "first_validation_loss": self.first_validation_loss,
            "best_validation_loss": self.best_validation_loss,
            "last_training_loss": self.last_training_loss,
            "still_falling": self.still_falling,
            "time_s": round(self.time_s, 1),
            "trainable_parameters": self.trainable_parameters,
        }


@dataclass(frozen=True)
class Run:
    """A run on disk: how it was started, and where it can be continued."""

    folder: Path
    settings: Mapping[str, Any]
    """By adapter in a joint run."""
    adapters: tuple[str, ...] = ()
    """What is trained."""
    joint: bool = False
    first_validation_losses: Mapping[str, float] = field(default_factory=dict)
    """By adapter."""
    checkpoint: Path | None = None
    results: Mapping[str, TrainingResult] = field(default_factory=dict)
    """By adapter; there when the run ended, perhaps without having been stored."""

    def recorded(self, **changes: Any) -> "Run":
        """The run with something new known of it, written in one step by the first process.

        Raises:
            PathError: It cannot be written.
        """
        run = dataclasses.replace(self, **changes)
        if process_rank() > 0:
            return run
        record = {
            "adapters": list(run.adapters),
            "joint": run.joint,
            "settings": run.settings,
            "first_validation_losses": dict(run.first_validation_losses),
            "results": {name: dataclasses.asdict(result) for name, result in run.results.items()},
        }
        write_at_once(run.folder / RUN_FILE, json.dumps(record, indent=2, default=str))
        return run


@contextmanager
def held_run(run_dir: Path) -> Iterator[None]:
    """Hold a run's folder for a block; the same thread may do so again inside. Of several processes the first holds it.

    Raises:
        RunInUse: Another process, or another thread of this one, trains there.
        PathError: The folder cannot be made or written.
    """
    if process_rank() > 0:
        yield
        return
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run_dir / LOCK_FILE, is_singleton=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RunInUse(str(run_dir), str(read_holder(run_dir) or "another process")) from None
    except OSError as error:
        raise PathError.of(run_dir, error) from error
    try:
        write_at_once(run_dir / HOLDER_FILE, json.dumps(dataclasses.asdict(Worker.this())))
        yield
    finally:
        lock.release()


def read_holder(run_dir: Path) -> Worker | None:
    """Who holds a run, or was the last to hold it; None where that cannot be read."""
    try:
        said = json.loads((run_dir / HOLDER_FILE).read_text(encoding="utf-8"))
        began = said.get("began")
        return Worker(int(said["process"]), str(said["host"]), None if began is None else float(began))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def prepare_run(
    run_dir: Path, settings: Mapping[str, Any], resume: bool, adapters: Sequence[str] = (), *, joint: bool = False
) -> Run:
    """Open a new run, or the one in ``run_dir`` to be continued. Of several processes only the first changes files.

    A run of the very same data and settings is continued without ``resume`` as well: it ends as a new one would.

    Args:
        run_dir: Its folder.
        settings: What it is started with; by adapter in a joint run.
        resume: Go on with what is there.
        adapters: What is trained.
        joint: Whether several adapters are trained in one run.

    Raises:
        NothingToResume: ``resume`` without a complete checkpoint or a finished run.
        TrainingError: ``resume`` with other settings than those the run was started with.
        PathError: The folder cannot be written.
    """
    complete = complete_checkpoints(run_dir)
    first = process_rank() == 0
    if not resume and complete and _is_of(run_dir, settings):
        if first:
            logger.warning("The unfinished run in %s is of the same data and settings, and goes on.", run_dir)
        resume = True
    if not resume:
        if complete and first:
            logger.warning("The unfinished run in %s was of other data or settings, and is given up.", run_dir)
        if first:
            discard_checkpoints(run_dir)
            shutil.rmtree(run_dir / REJECTED_FOLDER, ignore_errors=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        return Run(run_dir, settings, tuple(adapters), joint).recorded()
    record = read_record(run_dir)
    if record is None or not (complete or record["results"]):
        raise NothingToResume(str(run_dir))
    started = record["settings"]
    now = json.loads(json.dumps(settings, default=str))
    differing = [key for key in {**started, **now} if started.get(key) != now.get(key)]
    if differing:
        changes = [f"  {line}" for key in differing for line in _differences(key, started.get(key), now.get(key))]
        raise TrainingError(
            f"The run in {run_dir} has other settings, so it cannot be continued:\n"
            + "\n".join(changes)
            + "\nGive it the same again, or start over without --resume."
        )
    for path in _checkpoints(run_dir):
        if first and path not in complete:
            why = "damaged" if not is_complete(path) else "without the best one until then, which is damaged,"
            logger.warning("%s is %s and passed over.", path, why)
            shutil.rmtree(path)
    results = {
        name: TrainingResult(**{**ended, "folder": Path(ended["folder"]), "curve": Path(ended["curve"])})
        for name, ended in record["results"].items()
    }
    checkpoint = complete[-1] if complete else None
    return Run(run_dir, settings, tuple(adapters), joint, record["first_validation_losses"], checkpoint, results)


def _is_of(run_dir: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run is known to be of these settings; of a stream, whose content is not, it never is."""
    try:
        record = read_record(run_dir)
    except TrainingError:
        return False
    now = json.loads(json.dumps(settings, default=str))
    return record is not None and record["settings"] == now and _UNKNOWN_DATA not in json.dumps(now, sort_keys=True)


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """What ``Run.recorded`` wrote; None where there is no run.

    Raises:
        TrainingError: It cannot be read, or is no such record.
    """
    try:
        record: dict[str, Any] = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        if not all(isinstance(record[part], dict) for part in ("settings", "first_validation_losses", "results")):
            raise ValueError("it is no record of a run")
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise TrainingError(f"{run_dir / RUN_FILE} cannot be read: {reason}. Start over without --resume.") from error


def _differences(name: str, started: Any, now: Any) -> list[str]:
    """What of a setting differs, one line each."""
    if isinstance(started, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**started, **now} if started.get(key) != now.get(key)]
        return [f"{name}.{key}: started with {started.get(key)}, now {now.get(key)}" for key in keys]
    return [f"{name}: started with {started}, now {now}"]


def discard_checkpoints(run_dir: Path) -> None:
    """Remove what only a continued run would need."""
    for path in _checkpoints(run_dir):
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise PathError.of(path, error) from error


def discard_run(run_dir: Path) -> None:
    """Remove what only a continued run would need of a run whose adapters are stored: checkpoints and the record."""
    discard_checkpoints(run_dir)
    for path in (run_dir / RUN_FILE, run_dir / NOTES_FILE):
        path.unlink(missing_ok=True)
    remove_abandoned(run_dir, after_s=0)  # whoever holds the run is its only writer


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Those a run can be continued from, the last one last: whole, with the best one until then."""
    whole = [path for path in _checkpoints(run_dir) if is_complete(path)]
    return [path for path in whole if (best := _best_step(path)) is None or run_dir / f"{_CHECKPOINT}{best}" in whole]


def _best_step(checkpoint: Path) -> int | None:
    """The step of the checkpoint that a run would end with; None where a checkpoint holds that itself."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        step = state.get("best_global_step")
    except (OSError, ValueError, AttributeError):  # ``Trainer`` will say what is wrong with it
        return None
    return step if type(step) is int and step > 0 else None


def _checkpoints(run_dir: Path) -> list[Path]:
    found = [path for path in run_dir.glob(f"{_CHECKPOINT}*") if path.name.removeprefix(_CHECKPOINT).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_CHECKPOINT)))


def seal_checkpoint(checkpoint: Path) -> None:
    """Make a checkpoint durable and list its files with their digests, last of all.

    Raises:
        OSError: It cannot be written.
    """
    records = {}
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and path.name != _SEAL:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            records[path.name] = dataclasses.asdict(hash_file(path))
    write_at_once(checkpoint / _SEAL, json.dumps(records, indent=1))


def why_unwritable(folder: Path, error: Exception) -> str:
    """Why something could not be written into a folder; that the disk is full torch says in words of its own."""
    if shutil.disk_usage(folder).free < _FULL_BYTES:
        return os.strerror(errno.ENOSPC)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of a checkpoint is there, and is what was written."""
    try:
        records = json.loads((checkpoint / _SEAL).read_text(encoding="utf-8"))
        return bool(records) and all(
            dataclasses.asdict(hash_file(checkpoint / name)) == record for name, record in records.items()
        )
    except (OSError, ValueError, AttributeError):
        return False


def write_at_once(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile.

    Raises:
        PathError: It cannot be written.
    """
    with naming(path), written_whole(path) as file:
        file.write(text.encode())
