"""What is to be said about images, said by one engine in this process; images are opened ahead of it. No torch."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from lorax_vlm.bulk.columns import Column
from lorax_vlm.bulk.journal import Said, SeenImage
from lorax_vlm.bulk.opening import Opened, open_ahead
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.standing import Standing
from lorax_vlm.errors import ExampleError, LoraxError, UsageError
from lorax_vlm.requests import Engine, Request, ScoringEngine
from lorax_vlm.runtime.rows import BATCH_PIXELS


@dataclass(frozen=True)
class Answered:
    """What came of one item."""

    standing: Standing
    seen: SeenImage | None = None
    """Its image, where it was looked at."""
    said: Mapping[str, Said] = field(default_factory=dict)
    """What was said now, or got its likelihood now, by label."""
    error: LoraxError | None = None
    """Of the image, or of the first column that failed."""


class Answering(Protocol):
    """Says what is to be said of items, a batch at a time; nothing is asked of whatever only is to be written."""

    def answers(
        self, todo: Iterable[Standing], order: BulkOrder, stopped: Callable[[], bool]
    ) -> Generator[list[Answered]]:
        """Batches as they are ready, in any order; once it is ``stopped`` only those that are being said.

        Raises:
            LoraxError: One that says nothing about an item; see ``Result.text_or_error``.
        """
        ...


@dataclass(frozen=True)
class Pace:
    """How one engine goes about it."""

    batch_size: int = 32
    """Images that are asked about together."""
    threads: int = 2
    """That read and decode images ahead."""


class LocalAnswers:
    """One engine in this process."""

    def __init__(self, engine: Callable[[], AbstractContextManager[Engine]], pace: Pace | None = None) -> None:
        """Nothing is loaded.

        Args:
            engine: Opens what answers; called when the first image is to be asked about.
            pace: How it goes about it.
        """
        self._engine, self._pace = engine, pace or Pace()

    def answers(
        self, todo: Iterable[Standing], order: BulkOrder, stopped: Callable[[], bool]
    ) -> Generator[list[Answered]]:
        """Batches in the order of the items; see ``Answering.answers``.

        The engine is used on the thread that asks for them: in another one torch would have other threads of its own.
        """
        things = ((standing, standing.item if standing.wanted else None) for standing in todo)
        opened = open_ahead(things, threads=self._pace.threads, ahead=2 * self._pace.batch_size)
        with ExitStack() as stack:
            engine: Engine | None = None
            for batch in _batches(opened, self._pace.batch_size):
                if stopped():
                    return
                if engine is None and any(one.picture is not None for one in batch):
                    engine = stack.enter_context(self._engine())
                yield ask(engine, batch, order.columns, likelihood=order.likelihood)


def ask(
    engine: Engine | None, batch: Sequence[Opened[Standing]], columns: Sequence[Column], *, likelihood: bool
) -> list[Answered]:
    """What is said of each image of a batch; ``engine`` may be None where no image is open."""
    asked = [  # column by column: short texts do not wait for long ones, and an image is encoded once all the same
        (number, column, one)
        for column in columns
        for number, one in enumerate(batch)
        if one.picture is not None and column.label in one.what.wanted
    ]
    requests = {
        (number, column.label): Request.about(one.picture, one.what.item.question, column.adapter, **column.decoding)
        for number, column, one in asked
    }
    said: dict[int, dict[str, Said]] = {}
    errors: dict[int, LoraxError] = {}
    new = [each for each in asked if each[1].label not in each[2].what.unscored]
    results = (
        engine.generate([requests[number, column.label] for number, column, _ in new]) if engine is not None else []
    )
    for (number, column, one), result in zip(new, results, strict=True):
        text = result.text_or_error()
        if isinstance(text, LoraxError):
            errors.setdefault(number, text)
        elif one.seen is not None:
            how = column.how_about(one.what.item.question)
            made = Said(one.seen.digest, column.digest, how, str(text), text.finish, text.tokens)
            said.setdefault(number, {})[column.label] = made
    for number, one in enumerate(batch):
        if one.picture is not None and one.what.unscored:
            said[number] = {**one.what.unscored, **said.get(number, {})}
    if likelihood and engine is not None:
        said = _with_likelihoods(engine, requests, said)
    return [
        Answered(one.what, one.seen, said.get(number, {}), one.error or errors.get(number))
        for number, one in enumerate(batch)
    ]


def _with_likelihoods(
    engine: Engine, requests: Mapping[tuple[int, str], Request], said: Mapping[int, Mapping[str, Said]]
) -> dict[int, dict[str, Said]]:
    """The same texts, each with how likely the model finds it."""
    if not isinstance(engine, ScoringEngine):
        raise UsageError("What answers here does not say how likely texts are.")
    places = [(number, label) for number, of in said.items() for label in of]
    texts = [said[number][label].text for number, label in places]
    likelihoods: list[float | None]
    try:
        likelihoods = [*engine.likelihoods([requests[place] for place in places], texts)]
    except ExampleError:  # of one that fills all positions of the model
        likelihoods = [_likelihood(engine, requests[place], text) for place, text in zip(places, texts, strict=True)]
    scored: dict[int, dict[str, Said]] = {}
    for (number, label), likelihood in zip(places, likelihoods, strict=True):
        scored.setdefault(number, {})[label] = replace(said[number][label], likelihood=likelihood)
    return scored


def _likelihood(engine: ScoringEngine, request: Request, text: str) -> float | None:
    """That of one text; None where with its end it is longer than the model reads."""
    try:
        return engine.likelihoods([request], [text])[0]
    except ExampleError:
        return None


def _batches(opened: Iterable[Opened[Standing]], size: int) -> Iterator[list[Opened[Standing]]]:
    batch: list[Opened[Standing]] = []
    pixels = 0
    for one in opened:
        if len(batch) == size or (batch and pixels >= BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(one)
        pixels += one.pixels
    if batch:
        yield batch
