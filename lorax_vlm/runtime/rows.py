"""Rows of images and prompts, answered in batches: images are opened when their batch comes, and a row fails alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.errors import LoraxError, RowFailed
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.types import Generated, GenerationSettings

BATCH_PIXELS = 40_000_000
"""Most pixels of a batch's images together, three bytes each; a larger image has a batch of its own."""


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


def answer_rows(
    library: AdapterLibrary, rows: Sequence[Row | LoraxError], *, batch_size: int, return_errors: bool = False
) -> list[Generated | LoraxError]:
    """What is said to each row, in their order; rows of equal settings share batches.

    Args:
        library: Of the base.
        rows: What to say; an error stands for a row that could not even be made, and stays in its place.
        batch_size: Most rows per forward pass.
        return_errors: Put the error of a bad row in its place instead of raising it. A row that fails for a reason
            nobody foresaw has a ``RowFailed``, and the others are still answered.

    Raises:
        LoraxError: A row is bad, and ``return_errors`` is false.
    """
    results: dict[int, Generated | LoraxError] = {}
    by_settings: dict[GenerationSettings, list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        if isinstance(row, LoraxError):
            results[number] = row
        else:
            by_settings.setdefault(row.settings, []).append((number, row))
    for settings, members in by_settings.items():
        for batch in _opened_batches(members, batch_size, results):
            try:
                results |= _answer(library, batch, settings)
            except Exception as error:
                if not return_errors:
                    raise
                results |= _answer_one_by_one(library, batch, settings, error)
    answered = [results[number] for number in range(len(rows))]
    if not return_errors:
        for result in answered:
            if isinstance(result, LoraxError):
                raise result
    return answered


def _opened_batches(
    members: Sequence[tuple[int, Row]], batch_size: int, results: dict[int, Generated | LoraxError]
) -> Iterator[list[_Opened]]:
    """Rows with their images, as many at a time as one batch takes. Neighbours that name one image share it."""
    batch: list[_Opened] = []
    pixels = 0
    for number, row in members:
        # ``row.image`` is held by the row, so that its address cannot become another one's.
        same = next((o.picture for o in reversed(batch) if _is_same(o.row.image, row.image)), None)
        try:
            picture = same if same is not None else load_image(row.image)
        except LoraxError as error:
            results[number] = error
            continue
        size = 0 if same is not None else picture.width * picture.height
        if batch and (len(batch) == batch_size or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels, size = [], 0, picture.width * picture.height
        batch.append(_Opened(number, row, picture))
        pixels += size
    if batch:
        yield batch


def _is_same(one: ImageSource, other: ImageSource) -> bool:
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _answer(library: AdapterLibrary, batch: Sequence[_Opened], settings: GenerationSettings) -> dict[int, Generated]:
    said = library.generate(
        [opened.row.adapter for opened in batch],
        [opened.picture for opened in batch],
        [opened.row.prompt for opened in batch],
        settings,
    )
    return {opened.number: text for opened, text in zip(batch, said, strict=True)}


def _answer_one_by_one(
    library: AdapterLibrary, batch: Sequence[_Opened], settings: GenerationSettings, error: Exception
) -> dict[int, Generated | LoraxError]:
    """After a batch has failed: each row alone, so that only those fail that cannot be answered."""
    results: dict[int, Generated | LoraxError] = {}
    for opened in batch:
        try:
            if len(batch) == 1:
                raise error
            results |= _answer(library, [opened], settings)
        except LoraxError as own:
            results[opened.number] = own
        except Exception as foreign:
            failed = RowFailed(opened.number, foreign)
            failed.__cause__ = foreign
            results[opened.number] = failed
    return results
