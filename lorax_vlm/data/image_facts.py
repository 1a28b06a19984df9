"""What is known of an image before it is trained on: the digest of its content, and whether it can be read at all.

The check reads and decodes with the very functions that the run uses, so what passes it can be trained on. Each file
is read once for both, and what was found is remembered as long as the process lives: a run after ``doctor`` decodes
nothing twice. Pictures are let go as soon as they have been looked at.

No torch.
"""

import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from lorax_vlm.data.images import ImageSource, content_digest, decode_image, read_image_bytes
from lorax_vlm.errors import ImageError, LoraxError
from lorax_vlm.foreign import quoted

Progress = Callable[[int, int], None]
"""Is told how many of how many images have been looked at."""
_MOST_WORKERS, _AT_A_TIME = 8, 1024
_PIXELS_IN_WORK = 24_000_000  # together: decoding and turning one takes about 9 bytes a pixel
_MOST_REMEMBERED = 250_000
_SETTLED_NS = 2_000_000_000  # a file changed since then may change again without its time showing it


class ImageFacts(NamedTuple):
    """What the check found."""

    digest: str
    """SHA-256 of the bytes; empty when they could not be read."""
    problem: str | None
    """Why it cannot be used, None for nothing."""


class RowImage:
    """An image inside a table that is read when it is needed; equal to every other one of the same content."""

    def __init__(self, rows: Any, index: int, column: str, digest: str = "") -> None:
        """Row ``index`` of ``rows``, whose ``column`` holds ``bytes``, or an object with them."""
        self._rows, self._index, self._column, self.digest = rows, index, column, digest

    def read(self) -> bytes:
        """The encoded image."""
        value = self._rows[self._index][self._column]
        data: bytes = value["bytes"] if isinstance(value, dict) else value
        return data

    def identified(self, digest: str) -> "RowImage":
        """The same image, its content known."""
        return RowImage(self._rows, self._index, self._column, digest)

    @property
    def place(self) -> Hashable:
        """Where it is."""
        return id(self._rows), self._index, self._column  # this object holds the table, so its id stays its own

    def __call__(self) -> Image.Image:
        """The picture, RGB.

        Raises:
            ImageError: It cannot be read.
        """
        return decode_image(self.read(), f"row {self._index}")

    def __eq__(self, other: object) -> bool:
        """Whether the content is the same; as long as neither is known, the place."""
        if not isinstance(other, RowImage):
            return NotImplemented
        return (self.digest or self.place) == (other.digest or other.place)

    def __hash__(self) -> int:
        """By content, or place."""
        return hash(self.digest or self.place)


Stored = Path | bytes | RowImage
"""Images as readers find them."""


def examine(images: Sequence[Stored], progress: Progress | None = None) -> list[ImageFacts]:
    """Read and decode each distinct image once.

    Args:
        images: Of every row; the same one may occur many times.
        progress: Is told how far it is.

    Returns:
        Facts in the order of ``images``.
    """
    places = [_place(image) for image in images]
    distinct = dict(zip(places, images, strict=True))
    found: dict[Hashable, ImageFacts] = {}
    room, todo = _Room(), list(distinct.items())
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(todo), _AT_A_TIME):
            chunk = todo[start : start + _AT_A_TIME]
            for (place, _), facts in zip(chunk, pool.map(lambda item: _examine(item[1], room), chunk), strict=True):
                found[place] = facts
                if progress is not None:
                    progress(len(found), len(todo))
    return [found[place] for place in places]


def _place(image: Stored) -> Hashable:
    return image.place if isinstance(image, RowImage) else image


def _examine(image: Stored, room: "_Room") -> ImageFacts:
    state = _state(image) if isinstance(image, Path) else None
    known = _digests.get(state)
    problem = _readable.get(known, _UNSEEN) if known is not None else _UNSEEN
    if known is not None and problem != _UNSEEN:
        return ImageFacts(known, problem)
    with room.taken():
        try:
            data = read_image_bytes(image) if isinstance(image, Path) else _bytes_of(image)
        except ImageError as error:
            return ImageFacts("", error.reason)
        digest = hashlib.sha256(data).hexdigest()
        problem = _readable.get(digest, _UNSEEN)  # another thread may clear it at any moment
        if problem == _UNSEEN:
            problem = _decoding_problem(data, room)
            _remember(_readable, digest, problem)
    _remember_file(state, digest)
    return ImageFacts(digest, problem)


def _bytes_of(image: bytes | RowImage) -> bytes:
    return image.read() if isinstance(image, RowImage) else image


def _decoding_problem(data: bytes, room: "_Room") -> str | None:
    try:
        picture = decode_image(data, "the image")
    except ImageError as error:
        return error.reason
    room.saw(picture.width * picture.height)
    return None


class _Room:
    """Keeps the pictures that are decoded at one time small together: as many threads as their size allows."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free, self._largest = _PIXELS_IN_WORK, _PIXELS_IN_WORK  # the first one alone: its size is not known

    def saw(self, pixels: int) -> None:
        """Pictures of this size are expected."""
        with self._changed:
            first = self._largest == _PIXELS_IN_WORK and pixels < _PIXELS_IN_WORK
            self._largest = min(pixels if first else max(pixels, self._largest), _PIXELS_IN_WORK)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for room for one more."""
        with self._changed:
            needed = self._largest
            while self._free < needed:
                self._changed.wait()
            self._free -= needed
        try:
            yield
        finally:
            with self._changed:
                self._free += needed
                self._changed.notify_all()


# What was found, by the file's number, size and times, and by content. Nothing is kept of the pictures themselves.
_digests: dict[tuple[int, ...] | None, str] = {}
_readable: dict[str, str | None] = {}
_UNSEEN = "not looked at"


def _remember(known: dict[Any, Any], key: Hashable, value: Any) -> None:
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    known[key] = value


def _remember_file(state: tuple[int, ...] | None, digest: str) -> None:
    if state is not None and time.time_ns() - max(state[-2:]) > _SETTLED_NS:
        _remember(_digests, state, digest)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def example_digest(source: ImageSource | Callable[[], Image.Image]) -> str:
    """SHA-256 of what an example's image is made of; see ``images.content_digest``. What is known is not read again.

    A drawing is known by its function and arguments when those say all, else by its pixels.

    Raises:
        ImageError: It cannot be read, or the function that draws it fails.
    """
    if isinstance(source, RowImage):
        return source.digest or content_digest(source.read())
    if isinstance(source, Path):
        return _file_digest(source)
    return _drawing_digest(source) if callable(source) else content_digest(source)


def _file_digest(path: Path) -> str:
    state = _state(path)
    if state is not None and state in _digests:
        return _digests[state]
    digest = content_digest(path)
    _remember_file(state, digest)
    return digest


def _drawing_digest(function_of_it: Callable[[], Image.Image]) -> str:
    if isinstance(function_of_it, functools.partial):
        function, given = function_of_it.func, (function_of_it.args, sorted(function_of_it.keywords.items()))
        name = f"{getattr(function, '__module__', '<>')}.{getattr(function, '__qualname__', '<>')}"
        if "<" not in name and _says_all(given):
            return hashlib.sha256(f"drawn by {name} {given!r}".encode()).hexdigest()
    return content_digest(draw(function_of_it))


def draw(function: Callable[[], ImageSource]) -> ImageSource:
    """What somebody's function gives.

    Raises:
        ImageError: It fails, or what it gives is no image.
    """
    name = f"<{quoted(getattr(function, '__qualname__', type(function).__name__))[1:-1]}>"
    try:
        picture = function()
    except (LoraxError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(name, f"the function that draws it failed: {type(error).__name__}: {error}.") from error
    if callable(picture):
        raise ImageError(name, "the function that draws it gives another function.")
    return picture


def _says_all(value: Any) -> bool:
    """Whether ``repr`` of a value is the value."""
    if isinstance(value, list | tuple):
        return all(_says_all(part) for part in value)
    return value is None or type(value) in (str, int, float, bool)
