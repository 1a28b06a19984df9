"""Paths that people name: tried before any work, and their troubles said as what they are. No torch."""

import importlib.util
import itertools
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lorax_vlm.errors import LoraxError, PathError, UsageError
from lorax_vlm.foreign import quoted

_CAN_LOCK = importlib.util.find_spec("fcntl") is not None  # not on Windows
if _CAN_LOCK:
    import fcntl

WRITTEN_BY = "written by lorax-vlm"
"""Stands in every picture and page that is written, so that it may be written over."""
OWN_FOLDER = ".lorax-vlm"
"""In folders of others: what is ours beside what was written for them."""
SCRATCH_PREFIX = ".writing-"
"""How what is not whole yet is called."""
_SCRATCH = re.compile(rf"{re.escape(SCRATCH_PREFIX)}[0-9a-f]{{32}}")
_ABANDONED_S = 3600
_PROCESS, _NUMBERS = uuid.uuid4().hex[:16], itertools.count()
_LOOKED_AT = 2**16


@contextmanager
def naming(path: object, hint: str = "") -> Iterator[None]:
    """Run a block in which a trouble of the system with a file is one of a path that somebody named.

    Raises:
        PathError: In the place of an ``OSError``.
    """
    try:
        yield
    except LoraxError:
        raise
    except OSError as error:
        raise PathError.of(path, error, hint) from error


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that is put in its place when it is whole and on the disk; until then what was there is as it was.

    What a writer that was killed leaves beside it is removed by the next one of this folder, see ``abandoned``.

    Args:
        path: Its place.

    Raises:
        OSError: It cannot be written.
    """
    remove_abandoned(path.parent)
    scratch = path.with_name(scratch_name())
    try:
        with scratch.open("xb") as file:
            _hold(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def rewrite(path: Path, content: bytes, rights_of: Path | None = None) -> None:
    """Put other content into a file, of a link into the one that it leads to, with the same rights.

    Args:
        path: Its place.
        content: All of it.
        rights_of: Another file whose rights it gets. None: its own.

    Raises:
        OSError: It cannot be written; it is as it was then.
    """
    place = Path(os.path.realpath(path))
    with written_whole(place) as file:
        file.write(content)
        shutil.copymode(rights_of or place, file.name)


def scratch_name() -> str:
    """A new name for what is not whole yet."""
    return f"{SCRATCH_PREFIX}{_PROCESS}{os.getpid() & 0xFFFFFF:06x}{next(_NUMBERS) & 0xFFFFFFFFFF:010x}"


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Say for a block that a folder is being written, however long that takes; see ``abandoned``."""
    handle = os.open(folder, os.O_RDONLY) if _CAN_LOCK else None
    try:
        if handle is not None:
            _hold(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _hold(handle: int) -> None:
    """Lock what is being written; the system lets go when the process dies. Where it cannot lock, age alone counts."""
    if _CAN_LOCK:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_held(path: Path) -> bool:
    """Whether a writer that lives holds it; where that cannot be found out, nothing is taken away from anybody."""
    if not _CAN_LOCK:
        return True
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def abandoned(folder: Path, after_s: float = _ABANDONED_S) -> Iterator[Path]:
    """What writers that were killed left in a folder: what is called as theirs, and is an hour old and held by none.

    Whoever knows that nobody else writes there need not wait: ``after_s=0``.
    """
    for path in folder.glob(f"{SCRATCH_PREFIX}*"):
        with suppress(FileNotFoundError):  # its writer has just finished
            old = not after_s or time.time() - path.stat().st_mtime > after_s
            if _SCRATCH.fullmatch(path.name) and old and not _is_held(path):
                yield path


def remove_abandoned(folder: Path, after_s: float = _ABANDONED_S) -> None:
    """Remove it, where the system lets us: nobody's work depends on it."""
    with suppress(OSError):
        for path in abandoned(folder, after_s):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make what was renamed into, or removed from, a folder last; where folders cannot be synced, nothing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def named_path(what: str, value: object) -> Path:
    """A path as somebody named it in Python, with its home written out.

    Args:
        what: The argument it was given as.
        value: A text or a path.

    Raises:
        UsageError: It is neither.
        PathError: No file can be called so.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise UsageError(f"{what} must be a path, got {quoted(value)}.")
    try:
        path = Path(value).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("it has a null character")
    except UnicodeEncodeError:
        raise PathError(quoted(str(value)), "half of a character is in it") from None
    except (ValueError, RuntimeError) as error:  # the latter where a home is not known
        raise PathError(quoted(str(value)), str(error)) from None
    return path


def require_replaceable(path: Path) -> None:
    """Nothing is lost by writing to a path: there is no file, or one that was written here.

    Raises:
        PathError: There is somebody's file, or it cannot be looked at.
    """
    with naming(path):
        if path.is_file() and path.stat().st_size and not _was_written_here(path):
            raise PathError(
                str(path), "there is a file already that lorax-vlm did not write", "Name a new file; it is as it was."
            )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to be written, put in its place when it is whole; until then what was there is as it was.

    Folders on the way are made. What is no file, such as a device, is written to as it is.

    Raises:
        PathError: It cannot be written, or somebody else's file is there.
    """
    require_replaceable(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        with written_whole(Path(os.path.realpath(path))) as file:
            yield file


def _was_written_here(path: Path) -> bool:
    mark = WRITTEN_BY.encode()
    with path.open("rb") as file:
        if mark in file.read(_LOOKED_AT):
            return True
        file.seek(max(0, path.stat().st_size - _LOOKED_AT))
        return mark in file.read()


def require_new_file(path: Path | None, suffix: str = "") -> Path | None:
    """A file that can be written, found out by trying; folders on the way to it are made. None stays None.

    Args:
        path: As named; a file that was written here before may be written over.
        suffix: What is added to a name without one.

    Raises:
        PathError: It cannot be written.
    """
    if path is None:
        return None
    path = path.expanduser()
    with naming(path):
        if path.is_dir():
            raise PathError(str(path), "it is a folder", "Name a file in it.")
        if suffix and not path.suffix:
            path = path.with_suffix(suffix)
        require_writable_folder(path.parent)
        require_replaceable(path)
        if path.exists() and not os.access(path, os.W_OK):
            raise PathError(str(path), "it may not be written")
    return path


def require_writable_folder(folder: Path) -> None:
    """Make a folder if it is not there, and try to write into it.

    Raises:
        PathError: It cannot be made or written.
    """
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)


def require_empty_folder(folder: Path) -> Path:
    """A new or empty folder, made if it is not there.

    Raises:
        PathError: It is a file, has something in it, or cannot be made.
    """
    folder = folder.expanduser()
    with naming(folder):
        if folder.exists() and not folder.is_dir():
            raise PathError(str(folder), "it is a file", "Name a new or empty folder; nothing was written.")
        if folder.is_dir() and any(folder.iterdir()):
            raise PathError(str(folder), "it is not empty", "Name a new or empty folder; nothing was written.")
        require_writable_folder(folder)
    return folder
