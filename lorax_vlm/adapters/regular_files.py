"""Ordinary files of other people's folders, and nothing else: no links that lead away, no pipes, no devices. No torch.

A folder may come out of an archive or a repository that somebody else made. A link in it may point at any file of this
machine, a pipe waits for ever, a device never ends. One kind of link is at home here: those of the Hugging Face cache,
whose ``snapshots/REVISION/`` holds links into ``blobs/`` beside it.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_FLAGS |= getattr(os, "O_BINARY", 0)
_BLOCK = 2**20


def open_regular(path: Path, *, cache_links: bool = True) -> BinaryIO:
    """Open a file for reading if it is an ordinary one.

    Args:
        path: Of the file.
        cache_links: Follow a link of the Hugging Face cache, too.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be opened.
        ValueError: It is something else.
    """
    real = path
    if path.is_symlink():
        target = _follow_cache_link(path) if cache_links else None
        if target is None or target.is_symlink():
            raise ValueError("it is a link")
        real = target
    handle = os.open(real, _FLAGS)
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            raise ValueError("it is a folder" if stat.S_ISDIR(kind) else "it is no ordinary file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_regular(path: Path, limit_bytes: int) -> bytes:
    """All of an ordinary file.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is something else, or too large.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit_bytes:
            raise ValueError(f"it has {size:,} bytes, the limit is {limit_bytes:,}")
        data = file.read(size + 1)
    if len(data) > size:
        raise ValueError("it grows while it is read")
    return data


def blocks_of(path: Path, limit_bytes: int, *, cache_links: bool = False) -> Iterator[bytes]:
    """An ordinary file, block by block.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be read.
        ValueError: It is something else, or too large.
    """
    done = 0
    with open_regular(path, cache_links=cache_links) as file:
        while block := file.read(_BLOCK):
            done += len(block)
            if done > limit_bytes:
                raise ValueError(f"it has more than {limit_bytes:,} bytes, which is the limit")
            yield block


def _follow_cache_link(path: Path) -> Path | None:
    """Where a link of the Hugging Face cache leads; None for any other link."""
    with suppress(OSError, ValueError, RuntimeError):
        folder = path.parent.resolve()
        target = Path(os.path.normpath(folder / os.readlink(path)))
        for above in (folder, *folder.parents):
            if above.name == "snapshots":
                blobs = above.parent / "blobs"
                return target if target.parent == blobs and not blobs.is_symlink() else None
    return None
