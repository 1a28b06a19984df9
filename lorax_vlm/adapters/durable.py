"""Files and folders that one writer has to itself, and that survive a power failure. No torch."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lorax_vlm.errors import PathError
from lorax_vlm.paths import naming

_LOCKED_S = 600.0


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
def own_folder(place: Path, prefix: str = "run-") -> Iterator[Path]:
    """A new folder below one, for the time of a block: nobody else writes there.

    Raises:
        PathError: It cannot be made.
    """
    with naming(place):
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
    with naming(folder):
        folder.mkdir(exist_ok=True)
        Path(tempfile.mkdtemp(prefix=prefix, dir=folder)).rmdir()
