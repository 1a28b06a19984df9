"""The training runs of this machine that are under way or wait to be gone on with. No torch."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from lorax_vlm.errors import NothingToResume, PathError, UsageError
from lorax_vlm.training.runs import HOLDER_FILE, LOCK_FILE, RUN_FILE, complete_checkpoints

_DIGEST = re.compile(r"-[0-9a-f]{8}$")
_JOINT = re.compile(r"^joint-[0-9a-f]{12}$")
_HELD_BY = re.compile(r"process (\d+) on (.+)")


@dataclass(frozen=True)
class RunState:
    """A run as it is now."""

    name: str
    """What the adapter is called, or ``joint-...`` for several in one run."""
    base: str
    folder: Path
    adapters: tuple[str, ...]
    """Of a joint run; empty for a run of one."""
    step: int
    """Of the last complete checkpoint."""
    steps: int
    """It is to have."""
    held_by: str
    """``process ID on HOST`` where it is running, else empty."""
    ended: bool
    """Whether it has all its results, and only was not stored."""
    changed: str
    """When a checkpoint was last written, or the run begun."""

    @property
    def state(self) -> str:
        """For people."""
        return "running" if self.held_by else "ended, not stored" if self.ended else "interrupted"


def list_runs(root: Path) -> Iterator[RunState]:
    """All runs that are not finished and stored, those of one base after the other.

    Args:
        root: ``settings.runs_dir()``.

    Raises:
        PathError: A folder cannot be read.
    """
    for record in sorted(root.glob(f"*/*/{RUN_FILE}")):
        try:
            run = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PathError(str(record), f"it cannot be read: {error}", "Remove the run's folder.") from error
        yield _state(record.parent, run)


def find_run(root: Path, name: str) -> RunState:
    """The run of a name.

    Raises:
        NothingToResume: There is none.
        UsageError: There are several, of different stores or bases.
    """
    found = [run for run in list_runs(root) if name in (run.name, run.folder.name, *run.adapters)]
    if not found:
        raise NothingToResume(str(root / name))
    if len(found) > 1:
        raise UsageError(f"Several runs are called {name!r}: {', '.join(run.folder.name for run in found)}.")
    return found[0]


def stop_run(run: RunState) -> None:
    """Interrupt a run on this machine as Ctrl-C does; it can be gone on with.

    Raises:
        UsageError: It is not running, or on another machine.
    """
    holder = _HELD_BY.fullmatch(run.held_by)
    if holder is None:
        raise UsageError(f"{run.name} is not running; it is {run.state}.")
    if holder[2] != socket.gethostname():
        raise UsageError(f"{run.name} is run by {run.held_by}, not by this machine.")
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(int(holder[1]), signal.SIGINT)


def _state(folder: Path, run: Mapping[str, Any]) -> RunState:
    settings = run.get("settings", {})
    joint = _JOINT.match(folder.name) is not None or _JOINT.match(_DIGEST.sub("", folder.name)) is not None
    parts = list(settings.values()) if joint else [settings]
    checkpoints = complete_checkpoints(folder)
    last = checkpoints[-1] if checkpoints else folder / RUN_FILE
    return RunState(
        _DIGEST.sub("", folder.name),
        folder.parent.name,
        folder,
        tuple(settings) if joint else (),
        int(last.name.rpartition("-")[2]) if checkpoints else 0,
        max((part.get("config", {}).get("max_steps", 0) for part in parts), default=0),
        _holder(folder),
        bool(run.get("results")),
        datetime.fromtimestamp(last.stat().st_mtime, UTC).isoformat(timespec="seconds"),
    )


def _holder(folder: Path) -> str:
    """Who holds a run. The lock is only tried where its process lives, so that nobody who begins is disturbed."""
    try:
        said = (folder / HOLDER_FILE).read_text(encoding="utf-8")[:200]
    except (OSError, UnicodeDecodeError):
        return ""
    holder = _HELD_BY.fullmatch(said)
    if holder is not None and holder[2] == socket.gethostname() and not psutil.pid_exists(int(holder[1])):
        return ""
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return said
    except OSError:  # it may only be looked at
        return ""
    lock.release()
    return ""
