"""Images, opened by threads ahead of the model that looks at them. No torch."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import SeenImage
from lorax_vlm.data.images import decode_image
from lorax_vlm.errors import ImageError, LoraxError

T = TypeVar("T")
MOST_PIXELS = 40_000_000
"""Of pictures that wait; three bytes each."""


@dataclass(frozen=True)
class Opened(Generic[T]):
    """What was to be opened, and its picture or why there is none."""

    what: T
    seen: SeenImage | None = None
    picture: Image.Image | None = None
    error: LoraxError | None = None

    @property
    def pixels(self) -> int:
        """Of its picture."""
        return self.picture.width * self.picture.height if self.picture is not None else 0


def open_ahead(
    things: Iterable[tuple[T, Item | None]], *, threads: int, ahead: int, most_pixels: int = MOST_PIXELS
) -> Iterator[Opened[T]]:
    """Things with the pictures of their items, in order.

    Args:
        things: Are taken as they are needed, on the thread that asks; None where no picture is needed.
        threads: That read and decode.
        ahead: Things that are opened before they are asked for, at most.
        most_pixels: Of pictures that wait, together; the ones at work come on top.
    """
    source, waiting, held = iter(things), deque[Future[Opened[T]]](), _Pixels()
    with ThreadPoolExecutor(threads, thread_name_prefix="opening") as pool:
        try:
            while True:
                while len(waiting) < ahead and held.count < most_pixels:
                    if (following := next(source, None)) is None:
                        break
                    what, item = following
                    waiting.append(pool.submit(_open, what, item, held) if item is not None else _ready(Opened(what)))
                if not waiting:
                    return
                opened = waiting.popleft().result()
                held.add(-opened.pixels)
                yield opened
        finally:
            for future in waiting:
                future.cancel()


def _ready(opened: Opened[T]) -> Future[Opened[T]]:
    future = Future[Opened[T]]()
    future.set_result(opened)
    return future


class _Pixels:
    """Of the pictures that wait, counted by the threads that open them."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.count += number


def _open(what: T, item: Item, held: _Pixels) -> Opened[T]:
    opened = _opened(what, item)
    held.add(opened.pixels)
    return opened


def _opened(what: T, item: Item) -> Opened[T]:
    try:
        stamp, data = item.stamp(), item.read()
        seen = SeenImage(hashlib.sha256(data).hexdigest(), stamp)
        return Opened(what, seen, decode_image(data, repr(item.name)))
    except LoraxError as error:
        return Opened(what, error=error)
    except MemoryError:
        return Opened(what, error=ImageError(repr(item.name), "there is not enough memory for it."))
