"""Rows of images and prompts, answered in batches: images are opened when their batch comes, and a row fails alone.

No torch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.errors import LoraxError, RowFailed
from lorax_vlm.types import Generated, GenerationSettings

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


def answer_rows(
    generate: Generate, rows: Sequence[Row | LoraxError], *, batch_size: int, alone: bool = True
) -> list[Generated | LoraxError]:
    """What is said to each row, in their order; rows of equal settings share batches.

    Args:
        generate: Answers a batch.
        rows: What to say; an error stands for a row that could not even be made, and stays in its place.
        batch_size: Most rows per forward pass.
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
        for batch in _opened_batches(members, batch_size, results):
            try:
                results |= _answer(generate, batch, settings)
            except Exception as error:
                if not alone:
                    raise
                if len(batch) > 1:
                    logger.warning("A batch of %d rows failed, they are answered one by one: %s", len(batch), error)
                results |= _answer_one_by_one(generate, batch, settings, error)
    return [results[number] for number in range(len(rows))]


def say_rows(generate: Generate, rows: Sequence[Row], *, batch_size: int) -> list[Generated]:
    """What is said to each row, in their order; see ``answer_rows``.

    Raises:
        LoraxError: A row failed; the error of the first.
    """
    said = answer_rows(generate, rows, batch_size=batch_size, alone=False)
    for text in said:
        if isinstance(text, LoraxError):
            raise text
    return [text for text in said if isinstance(text, Generated)]


def _opened_batches(
    members: Sequence[tuple[int, Row]],
    batch_size: int,
    results: dict[int, Generated | LoraxError],
) -> Iterator[list[_Opened]]:
    """Rows with their images, as many at a time as one batch takes. Neighbours that name one image share it."""
    batch: list[_Opened] = []
    pixels = 0
    for number, row in members:
        # ``row.image`` is held by the row, so that its address cannot become another one's.
        same = next((o.picture for o in reversed(batch) if _is_same(o.row.image, row.image)), None)
        if len(batch) == batch_size or (batch and same is None and pixels >= BATCH_PIXELS):
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


def _answer(generate: Generate, batch: Sequence[_Opened], settings: GenerationSettings) -> dict[int, Generated]:
    said = generate(
        [opened.row.adapter for opened in batch],
        [opened.picture for opened in batch],
        [opened.row.prompt for opened in batch],
        settings,
    )
    return {opened.number: text for opened, text in zip(batch, said, strict=True)}


def _answer_one_by_one(
    generate: Generate, batch: Sequence[_Opened], settings: GenerationSettings, error: Exception
) -> dict[int, Generated | LoraxError]:
    """After a batch has failed: each row alone, so that only those fail that cannot be answered."""
    results: dict[int, Generated | LoraxError] = {}
    for opened in batch:
        try:
            if len(batch) == 1:
                raise error
            results |= _answer(generate, [opened], settings)
        except LoraxError as own:
            results[opened.number] = own
        except Exception as foreign:
            results[opened.number] = RowFailed(opened.number, foreign)
    return results
