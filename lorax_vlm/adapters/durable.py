"""Writing that survives a power failure, and whose errors are those of the place that was written to. No torch."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lorax_vlm.errors import LoraxError, PathError


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
def own_folder(place: Path) -> Iterator[Path]:
    """A new folder below one, for the time of a block: nobody else writes there.

    Raises:
        PathError: It cannot be made.
    """
    with writing_to(place):
        place.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
