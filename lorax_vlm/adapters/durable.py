"""Writing that survives a power failure, and whose errors are those of the place that was written to. No torch."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lorax_vlm.errors import LoraxError, PathError

_LOCKED_S = 600.0


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Turn the system's errors into ``PathError`` for a place: full, read-only, not a folder."""
    try:
        yield
    except LoraxError:
        raise
    except OSError as error:
        raise PathError.of(place, error) from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, and return when it is on the disk.

    Raises:
        PathError: It cannot be written.
    """
    with writing_to(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make what was renamed into, or removed from, a folder last; where folders cannot be synced, nothing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Alone in changing a folder, for the time of a block; the system lets go when the process dies.

    Raises:
        PathError: It cannot be locked, or another process keeps it.
    """
    lock = FileLock(folder / ".lock", timeout=_LOCKED_S)
    with writing_to(folder):
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
def own_folder(place: Path, prefix: str = "run-") -> Iterator[Path]:
    """A new folder below one, for the time of a block: nobody else writes there.

    Raises:
        PathError: It cannot be made.
    """
    with writing_to(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_room(folder: Path, prefix: str) -> None:
    """Make a folder, if it is not there, and find out by trying whether something can be made in it.

    Raises:
        PathError: It cannot.
    """
    with writing_to(folder):
        folder.mkdir(exist_ok=True)
        Path(tempfile.mkdtemp(prefix=prefix, dir=folder)).rmdir()
