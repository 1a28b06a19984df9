"""The training runs of this machine that are under way or wait to be gone on with. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lorax_vlm.errors import NothingToResume, RunInUse, TrainingError, UsageError
from lorax_vlm.processes import Worker
from lorax_vlm.training.runs import LOCK_FILE, RUN_FILE, complete_checkpoints, read_holder, read_record


@dataclass(frozen=True)
class RunState:
    """A run as it is now."""

    name: str
    """What the adapter is called; several in one run with commas between them."""
    adapters: tuple[str, ...]
    base: str
    folder: Path
    step: int
    """Of the last complete checkpoint."""
    steps: int
    """It is to have."""
    holder: Worker | None
    """Where it is running."""
    ended: bool
    """Whether it has all its results, and only was not stored."""
    changed: str
    """When a checkpoint was last written, or the run begun."""
    settings: Mapping[str, Mapping[str, Any]]
    """What each adapter was started with."""

    @property
    def state(self) -> str:
        """For people."""
        return "running" if self.holder is not None else "ended, not stored" if self.ended else "interrupted"


@dataclass(frozen=True)
class BrokenRun:
    """A run whose record cannot be read."""

    folder: Path
    reason: str


def list_runs(root: Path) -> tuple[list[RunState], list[BrokenRun]]:
    """All runs that are not finished and stored, those of one base after the other, and those that cannot be read.

    Args:
        root: ``settings.runs_dir()``: of each base a folder, of each run a folder in it.
    """
    runs, broken = [], []
    for path in sorted(root.glob(f"*/*/{RUN_FILE}")):
        try:
            state = _state(path.parent)
        except TrainingError as error:
            broken.append(BrokenRun(path.parent, str(error)))
            continue
        if state is not None:
            runs.append(state)
    return runs, broken


def find_run(root: Path, name: str) -> RunState:
    """The run of a name: of its adapter, or of its folder.

    Raises:
        NothingToResume: There is none.
        TrainingError: It cannot be read.
        UsageError: There are several, of different stores or bases.
    """
    runs, broken = list_runs(root)
    found = [run for run in runs if name in (run.folder.name, *run.adapters)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"Several runs are called {name!r}: {', '.join(run.folder.name for run in found)}.")
    for run in broken:
        if name in (run.folder.name, run.folder.name.rpartition("-")[0]):
            raise TrainingError(run.reason)
    raise NothingToResume(str(root / name))


def stop_run(run: RunState, wait_s: float) -> None:
    """Interrupt a run on this machine as Ctrl-C does, and wait for its end; it can be gone on with.

    Args:
        run: As it was found.
        wait_s: It ends after the step that it is in.

    Raises:
        UsageError: It is not running, or on another machine.
        RunInUse: It goes on.
    """
    if run.holder is None:
        raise UsageError(f"{run.name} is not running; it is {run.state}.")
    if not run.holder.is_here:
        raise UsageError(f"{run.name} is run by {run.holder}, not by this machine.")
    if not run.holder.interrupt(lambda: _holder(run.folder) == run.holder, wait_s):
        raise RunInUse(str(run.folder), str(run.holder), f"It {run.holder.still_works(wait_s)}")


def _state(folder: Path) -> RunState | None:
    """A run as it is; None where it has just been stored."""
    run = read_record(folder)
    checkpoints = complete_checkpoints(folder)
    last = checkpoints[-1] if checkpoints else folder / RUN_FILE
    try:
        changed = last.stat().st_mtime
    except FileNotFoundError:
        return None
    if run is None:
        return None
    adapters = tuple(run.get("adapters") or [folder.name])  # of an older version, which did not name them
    settings = run["settings"] if run.get("joint") else {adapters[0]: run["settings"]}
    return RunState(
        ", ".join(adapters),
        adapters,
        folder.parent.name,
        folder,
        int(last.name.rpartition("-")[2]) if checkpoints else 0,
        max((part.get("config", {}).get("max_steps", 0) for part in settings.values()), default=0),
        _holder(folder),
        bool(run["results"]),
        datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds"),
        settings,
    )


def _holder(folder: Path) -> Worker | None:
    """Who holds a run. The lock is only tried where its process lives, so that nobody who begins is disturbed."""
    holder = read_holder(folder)
    if holder is None or not holder.may_live:
        return None
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return holder
    except OSError:  # it may only be looked at
        return None
    lock.release()
    return None
