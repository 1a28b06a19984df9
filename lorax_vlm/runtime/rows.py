"""Rows of images and prompts, answered in batches: images are opened when their batch comes, and a row fails alone.

No torch.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.errors import LoraxError, OutOfMemory, RowFailed
from lorax_vlm.types import Generated, GenerationSettings

T = TypeVar("T")
U = TypeVar("U")
logger = logging.getLogger(__name__)
BATCH_PIXELS = 20_000_000
"""A batch whose images have as many pixels together, three bytes each and as much again to prepare them, takes no
further image."""


Generate = Callable[[Sequence[str | None], Sequence[Image.Image], Sequence[str], GenerationSettings], list[Generated]]
"""Of adapters, pictures and prompts, one each per row; see ``BaseEngine.generate_batch``."""


@dataclass(frozen=True)
class Row:
    """One thing to say."""

    image: ImageSource
    adapter: str | None
    """Name in the store, None for the plain base."""
    prompt: str
    settings: GenerationSettings


@dataclass(frozen=True)
class _Opened:
    number: int
    row: Row
    picture: Image.Image


@dataclass
class BatchSize:
    """Most rows of a forward pass: half as many from the time on that memory does not suffice."""

    rows: int

    def halve(self, tried: int) -> None:
        """After so many rows were too many."""
        self.rows = max(1, min(self.rows, tried) // 2)
        logger.warning("There is not enough memory for %d rows at a time; from now on %d are tried.", tried, self.rows)


def answer_rows(
    generate: Generate, rows: Sequence[Row | LoraxError], *, size: BatchSize, alone: bool = True
) -> list[Generated | LoraxError]:
    """What is said to each row, in their order; rows of equal settings share batches.

    Args:
        generate: Answers a batch.
        rows: What to say; an error stands for a row that could not even be made, and stays in its place.
        size: Most rows per forward pass. Where memory does not suffice for them it is halved.
        alone: Answer the rows of a batch that failed one by one. False: what the batch raised is raised.

    Returns:
        A text, or the row's error. One that failed for a reason nobody foresaw is a ``RowFailed``.
    """
    results: dict[int, Generated | LoraxError] = {}
    by_settings: dict[GenerationSettings, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        if isinstance(row, LoraxError):
            results[number] = row
        else:
            by_settings.setdefault(row.settings, []).append((number, row))
    for settings, members in by_settings.items():
        for batch in _opened_batches(members, size, results):
            texts = as_fits(partial(_answer, generate, settings, alone=alone), batch, size)
            results |= {opened.number: text for opened, text in zip(batch, texts, strict=True)}
    return [results[number] for number in range(len(rows))]


def all_good(things: Iterable[T | LoraxError]) -> list[T]:
    """The same things; the first error among them is raised."""
    good: list[T] = []
    for thing in things:
        if isinstance(thing, LoraxError):
            raise thing
        good.append(thing)
    return good


def _opened_batches(
    members: Sequence[tuple[int, Row]],
    size: BatchSize,
    results: dict[int, Generated | LoraxError],
) -> Iterator[list[_Opened]]:
    """Rows with their images, as many at a time as one batch takes. Neighbours that name one image share it."""
    batch: list[_Opened] = []
    pixels = 0
    for number, row in members:
        # ``row.image`` is held by the row, so that its address cannot become another one's.
        same = next((o.picture for o in reversed(batch) if _is_same(o.row.image, row.image)), None)
        if len(batch) >= size.rows or (batch and same is None and pixels >= BATCH_PIXELS):
            yield batch
            batch.clear()  # whoever was given it has it in a variable, and its images would stay until the next
            pixels = 0
        try:
            picture = same if same is not None else load_image(row.image)
        except LoraxError as error:
            results[number] = error
            continue
        batch.append(_Opened(number, row, picture))
        if same is None or len(batch) == 1:
            pixels += picture.width * picture.height
    if batch:
        yield batch


def _is_same(one: ImageSource, other: ImageSource) -> bool:
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _answer(
    generate: Generate, settings: GenerationSettings, batch: Sequence[_Opened], *, alone: bool
) -> Sequence[Generated | LoraxError]:
    """What is said in one batch; where it fails and ``alone`` is true, in one for each row."""
    try:
        return generate(
            [opened.row.adapter for opened in batch],
            [opened.picture for opened in batch],
            [opened.row.prompt for opened in batch],
            settings,
        )
    except Exception as error:
        if not alone or _is_out_of_memory(error):
            raise
        if len(batch) == 1:
            return [error if isinstance(error, LoraxError) else RowFailed(batch[0].number, error)]
        logger.warning("A batch of %d rows failed, they are answered one by one: %s", len(batch), error)
    return [_answer(generate, settings, [opened], alone=True)[0] for opened in batch]


def as_fits(do: Callable[[Sequence[T]], Sequence[U]], things: Sequence[T], size: BatchSize) -> list[U | OutOfMemory]:
    """What is computed of things in batches of a size, which is halved where memory does not suffice.

    Returns:
        For each thing what came of it, or that memory does not suffice for it alone.

    Raises:
        Exception: Of ``do``, for any other reason than memory.
    """
    results: list[U | OutOfMemory] = []
    while some := things[len(results) : len(results) + size.rows]:
        made = _within_memory(do, some)
        if not isinstance(made, OutOfMemory):
            results += made
        elif len(some) == 1:
            results.append(made)
        else:
            size.halve(len(some))
    return results


def _within_memory(do: Callable[[Sequence[T]], Sequence[U]], some: Sequence[T]) -> Sequence[U] | OutOfMemory:
    try:
        return do(some)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        return OutOfMemory("one row", error.with_traceback(None))  # whose frames hold what had been computed


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out while a batch was computed, in torch's words for CUDA or the CPU."""
    if isinstance(error, LoraxError):
        return False
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
