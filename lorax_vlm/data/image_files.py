"""The bytes of a file that people, or rows of other people's data, name. No torch."""

import os
import stat
from pathlib import Path

from lorax_vlm.data.image_limits import DEFAULT_LIMITS, ImageLimits, describe_source
from lorax_vlm.errors import ImageError

_BLOCK = 1 << 20
# A pipe without a writer would be waited for, a terminal would become that of this process.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))


def read_image_bytes(source: str | Path, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of an ordinary file, which need not be an image.

    Raises:
        ImageError: There is none, it is a folder, a device or a pipe, or it has more bytes than allowed.
    """
    name = describe_source(source)
    try:
        return _read(Path(source).expanduser(), name, limits)
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError:
        raise ImageError(name, f"no such file{_where(source)}.") from None
    except OSError as error:
        raise ImageError(name, f"the file cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a null character, half of a character, a home that is not known
        raise ImageError(name, f"the file cannot be read: {error}.") from error


def _read(path: Path, name: str, limits: ImageLimits) -> bytes:
    if os.name == "nt" and path.is_dir():  # which cannot be opened there
        raise ImageError(name, "it is a folder.")
    descriptor = os.open(path, _FLAGS)
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise ImageError(name, "it is a folder.")
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(name, "it is no ordinary file but a device, a pipe or a socket.")
        if found.st_size > limits.max_bytes:
            raise ImageError(name, f"the file has {found.st_size:,} bytes, the limit is {limits.max_bytes:,}.")
        received = bytearray()
        while block := os.read(descriptor, min(_BLOCK, limits.max_bytes + 1 - len(received))):
            received += block
            if len(received) > limits.max_bytes:  # it grows, or says that it is empty
                raise ImageError(name, f"the file has more than {limits.max_bytes:,} bytes, which is the limit.")
        return bytes(received)
    finally:
        os.close(descriptor)


def _where(source: str | Path) -> str:
    if os.path.isabs(source) or str(source).startswith("~"):
        return ""
    try:
        return f" (looked in {Path.cwd()})"
    except OSError:  # this folder has been removed
        return ""
