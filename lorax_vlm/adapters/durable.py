"""Files and folders that one writer has to itself, and that survive a power failure. No torch."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lorax_vlm.errors import PathError
from lorax_vlm.paths import held_folder, naming, remove_abandoned, scratch_name

_LOCKED_S = 600.0
_RUN, _LOCK = "run-", ".lock"


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return when it is on the disk.

    Raises:
        PathError: It cannot be written.
    """
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Alone in changing a folder, for the time of a block; the system lets go when the process dies.

    Raises:
        PathError: It cannot be locked, or another process keeps it.
    """
    lock = FileLock(folder / ".lock", timeout=_LOCKED_S)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise PathError(str(folder), f"another process has kept it locked for {_LOCKED_S:.0f} s") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def own_folder(place: Path, name: str | None = None) -> Iterator[Path]:
    """A new folder below one, for the time of a block: nobody else writes there. What killed ones left goes.

    Args:
        place: Where; made if it is not there.
        name: None: one of what is not whole yet, see ``paths.scratch_name``.

    Raises:
        PathError: It cannot be made.
    """
    with naming(place):
        place.mkdir(parents=True, exist_ok=True)
        remove_abandoned(place)
        folder = place / (name or scratch_name())
        folder.mkdir(mode=0o700)
    try:
        with held_folder(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run_folder(place: Path) -> Iterator[Path]:
    """The same for a long run. What a killed one left there is removed: its lock, beside its folder, is nobody's.

    Raises:
        PathError: It cannot be made.
    """
    for former in place.glob(f"{_RUN}*{_LOCK}"):
        _remove_unless_held(former)
    with own_folder(place, f"{_RUN}{uuid.uuid4().hex}") as folder:
        lock = Path(f"{folder}{_LOCK}")
        try:
            with FileLock(lock):
                yield folder
        finally:
            lock.unlink(missing_ok=True)


def _remove_unless_held(lock: Path) -> None:
    with suppress(Timeout, OSError), FileLock(lock, timeout=0):
        shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
        lock.unlink(missing_ok=True)


def require_room(folder: Path) -> None:
    """Make a folder, if it is not there, and find out by trying whether something can be made in it.

    Raises:
        PathError: It cannot.
    """
    with naming(folder):
        folder.mkdir(exist_ok=True)
        tried = folder / scratch_name()
        tried.mkdir()
        tried.rmdir()
