"""Which examples show the same image, told by what the image is and never by what it is called. No torch."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.data.images import DEFAULT_LIMITS
from lorax_vlm.errors import LoraxError


class ImageKeys:
    """Keys of examples' images; a file that several examples name is read once."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def __call__(self, example: Example) -> str:
        """Equal for examples whose images are equal."""
        if not isinstance(example.image, str | Path):
            return example_key(example)
        place = str(example.image)
        if place not in self._known:
            self._known[place] = example_key(example)
        return self._known[place]


def example_keys(examples: Sequence[Example]) -> list[str]:
    """A key for each example."""
    key = ImageKeys()
    return [key(example) for example in examples]


def example_key(example: Example) -> str:
    """A digest of the content of one example's image: of the file, the pixels, or the drawing that makes it.

    What cannot be read is known by its name; asking about it will say what is wrong with it.
    """
    image = example.image
    if isinstance(image, str | Path):
        return _file_key(image)
    if isinstance(image, partial):
        made_by = (getattr(image.func, "__module__", ""), getattr(image.func, "__qualname__", repr(image.func)))
        return _digest(b"drawn", repr((made_by, image.args, sorted(image.keywords.items()))).encode())
    try:
        found = image() if callable(image) else image
        if isinstance(found, Image.Image):
            return _digest(f"{found.mode} {found.size}".encode(), found.tobytes())
    except (LoraxError, OSError):  # the system's own for a file that was opened, but is cut short
        return _digest(b"unread", example.name.encode(errors="surrogatepass"))
    if isinstance(found, np.ndarray):
        return _digest(f"{found.dtype} {found.shape}".encode(), np.ascontiguousarray(found).tobytes())
    return _digest(found)


def _file_key(path: str | Path) -> str:
    """Of a file's bytes; of its name where there is no file that could be an image, such as for an address."""
    try:
        place = Path(path).expanduser()
        if place.is_file() and place.stat().st_size <= DEFAULT_LIMITS.max_bytes:
            return _digest(place.read_bytes())
    except (OSError, RuntimeError, ValueError):
        pass
    return _digest(b"named", str(path).encode(errors="surrogatepass"))


def _digest(*parts: bytes | bytearray | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]
