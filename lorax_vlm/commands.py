"""Long commands that were given: to see what runs, what was asked for, and to ask for it again. No torch.

Each is a small file below ``settings.commands_dir()``; the same command in the same folder has one, of its last run.
"""

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import parse_json
from lorax_vlm.paths import written_whole
from lorax_vlm.processes import Worker

logger = logging.getLogger(__name__)
State = Literal["running", "finished", "failed", "interrupted"]
_INTERRUPTED = 130
_NOTED_EVERY_S = 5.0
_KEPT_S = 90 * 24 * 3600.0


@dataclass(frozen=True)
class GivenCommand:
    """A command and what became of it."""

    id: str
    """Of what was asked for and where."""
    name: str
    """Such as ``caption``."""
    values: Mapping[str, Any]
    """What it was given, as in a file for ``--config``."""
    about: str
    """What it works on, for people: an adapter's name, a folder."""
    folder: str
    """Where it was given."""
    process: int
    process_began: float
    host: str
    began: str
    """UTC, ISO 8601."""
    ended: str = ""
    exit_code: int | None = None
    """None as long as it runs, or where it was killed."""
    done: int = 0
    total: int = 0
    """Images or rows, and how many of them were gone through."""
    failed: int = 0
    """Of those that were gone through."""

    @property
    def worker(self) -> Worker:
        """Who runs it, or ran it."""
        return Worker(self.process, self.host, self.process_began)

    @property
    def state(self) -> State:
        """What became of it. One of another machine that has not ended is taken to run."""
        if self.exit_code is None:
            return "running" if self.worker.may_live else "interrupted"
        return "interrupted" if self.exit_code == _INTERRUPTED else "failed" if self.exit_code else "finished"

    @property
    def progress(self) -> str:
        """For people."""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.done:,} of {self.total:,}{failed}" if self.total else ""


class Recording:
    """The record of a command that runs."""

    def __init__(self, place: Path, command: GivenCommand) -> None:
        """Write it, unless another process runs the same command: the record is of that one then.

        Args:
            place: A folder; made if it is not there.
            command: What was given.
        """
        self._file, self._command, self._noted = place / f"{command.id}.json", command, 0.0
        self._silent = self._is_taken()
        self._write()

    def progress(self, done: int, total: int, failed: int = 0) -> None:
        """Note how far it is, now and then."""
        self._command = dataclasses.replace(self._command, done=done, total=total, failed=failed)
        if time.monotonic() > self._noted + _NOTED_EVERY_S:
            self._noted = time.monotonic()
            self._write()

    def end(self, exit_code: int) -> None:
        """Note what became of it."""
        self._command = dataclasses.replace(self._command, ended=_now(), exit_code=exit_code)
        self._write()

    def _is_taken(self) -> bool:
        try:
            there = _read(self._file)
        except (OSError, ValueError, TypeError):
            return False
        return there.state == "running" and there.process != self._command.process

    def _write(self) -> None:
        """Nobody's work depends on it: where it cannot be written, that is said once."""
        if self._silent:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._file) as file:
                file.write(json.dumps(dataclasses.asdict(self._command), indent=1).encode())
        except OSError as error:
            self._silent = True
            logger.warning("What was asked is not recorded in %s: %s", self._file, error.strerror or error)


@contextmanager
def recorded(
    place: Path, name: str, values: Mapping[str, Any], about: str, ignored: Sequence[str] = ()
) -> Iterator[Recording]:
    """Run a command's work with a record of it.

    Args:
        place: ``settings.commands_dir()``.
        name: Of the command.
        values: What it was given, as in a file for ``--config``.
        about: What it works on, for people.
        ignored: Values that make no other command, such as ``resume``.
    """
    folder = os.getcwd()
    same = json.dumps([name, {key: value for key, value in values.items() if key not in ignored}, folder])
    me = Worker.this()
    command = GivenCommand(
        hashlib.sha256(same.encode()).hexdigest()[:8],
        name,
        dict(values),
        about,
        folder,
        me.process,
        me.began or 0.0,
        me.host,
        _now(),
    )
    _forget_old(place)
    recording = Recording(place, command)
    try:
        yield recording
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        recording.end(_INTERRUPTED if interrupted else getattr(error, "exit_code", 1))
        raise
    recording.end(0)


def _forget_old(place: Path) -> None:
    """Remove records of what ended long ago."""
    with suppress(OSError):
        for path in place.glob("*.json"):
            if time.time() - path.stat().st_mtime > _KEPT_S:
                path.unlink(missing_ok=True)


def list_commands(place: Path) -> tuple[list[GivenCommand], list[str]]:
    """All that are recorded, the last one first, and the files that are no such record."""
    commands, broken = [], []
    for path in place.glob("*.json"):
        try:
            commands.append(_read(path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            broken.append(f"{path}: {error}")
    return sorted(commands, key=lambda command: command.began, reverse=True), broken


def find_command(place: Path, name: str, states: Sequence[State] = ()) -> GivenCommand:
    """A command by its id, or by what it works on.

    Args:
        place: ``settings.commands_dir()``.
        name: Of several commands about one thing, those in one of the states are meant, if there are any.
        states: In which it may be meant; none: the last one that was given is.

    Raises:
        UsageError: There is none, or there are several.
    """
    commands, _ = list_commands(place)
    found = [command for command in commands if command.id == name] or [
        command for command in commands if command.about == name
    ]
    if not found:
        raise UsageError(f"No run or command {name!r}. What there is: lorax-vlm runs list --all")
    found = [command for command in found if command.state in states] or found
    if len(found) > 1 and states:
        matches = ", ".join(f"{command.id} ({command.name}, {command.state})" for command in found)
        raise UsageError(f"{name!r} may be several: {matches}. Name one by its id.")
    return found[0]


def stop_command(command: GivenCommand, wait_s: float) -> None:
    """Interrupt a command on this machine as Ctrl-C does, and wait for its end.

    Args:
        command: As it was found.
        wait_s: A bulk job ends after its batch.

    Raises:
        UsageError: It is not running, or on another machine, or goes on.
    """
    what = f"{command.name} {command.about}"
    if command.state != "running":
        raise UsageError(f"{what} is not running; it is {command.state}.")
    worker = command.worker
    if not worker.is_here:
        raise UsageError(f"{what} is run by {worker}, not by this machine.")
    if not worker.interrupt(lambda: worker.may_live, wait_s):
        raise UsageError(f"{what} {worker.still_works(wait_s)}")


def _read(path: Path) -> GivenCommand:
    record = parse_json(path.read_bytes())
    if not isinstance(record, dict) or not isinstance(record.get("values"), dict):
        raise ValueError("it is no record of a command")
    return GivenCommand(**record)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
