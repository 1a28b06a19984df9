"""What is to be said about images, said by engines on the machines of a Ray cluster, one for each worker. No torch.

Items travel, not pictures: workers read images from where they are, so that folder and adapter store must be where
every worker finds them. Answers come back a batch at a time, as they are ready, and are kept here, in the one journal.
A worker that dies costs its batch, which Ray gives to another one.
"""

import logging
import pickle
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from lorax_vlm import errors
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.answering import Answered, ask
from lorax_vlm.bulk.columns import Column
from lorax_vlm.bulk.opening import open_ahead
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.standing import Standing
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.errors import LoraxError, MissingExtra
from lorax_vlm.models.catalog import checkpoints_by_key

_THREADS = 2


@dataclass(frozen=True)
class RayPace:
    """How a cluster goes about it."""

    address: str = "local"
    """Of the cluster; ``local`` starts one on this machine, ``auto`` finds the one that runs here."""
    workers: int = 2
    """Each with an engine of its own."""
    batch_size: int = 32
    """Images that are asked about together, and that a worker that dies costs."""
    gpus: float = 0.0
    """Of each worker."""


class RayAnswers:
    """Engines of one base, on a cluster."""

    def __init__(self, model: str, system: Mapping[str, Any] | None = None, pace: RayPace | None = None) -> None:
        """Nothing is started.

        Args:
            model: The base.
            system: ``store``, and options of each worker's bases; see ``runtime.bases.BaseOptions``.
            pace: How it goes about it.
        """
        self._model, self._system, self._pace = model, dict(system or {}), pace or RayPace()

    def answers(
        self, todo: Iterable[Standing], order: BulkOrder, stopped: Callable[[], bool]
    ) -> Generator[list[Answered]]:
        """Batches as they are ready; see ``Answering.answers``.

        Raises:
            MissingExtra: Ray is not installed.
        """
        wanted = []
        for standing in todo:
            if standing.wanted and standing.item.problem is None:
                wanted.append(_to_send(standing))
            else:
                yield [Answered(standing, error=standing.item.problem)]
        if wanted:
            yield from self._on_cluster(wanted, order, stopped)

    def _on_cluster(
        self, wanted: list[Standing], order: BulkOrder, stopped: Callable[[], bool]
    ) -> Generator[list[Answered]]:
        try:
            import ray
            from ray.data import ActorPoolStrategy, DataContext, from_items
        except ImportError:
            raise MissingExtra("ray", "ray", "Many machines") from None
        pace = self._pace
        started = not ray.is_initialized()
        if started:
            ray.init(pace.address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        try:
            DataContext.get_current().enable_progress_bars = False
            rows = [{"sent": pickle.dumps(standing)} for standing in wanted]
            blocks = -(-len(rows) // pace.batch_size)
            answered = from_items(rows, override_num_blocks=blocks).map_batches(
                _Worker,
                fn_constructor_args=(self._model, self._system, list(order.columns), order.likelihood),
                batch_size=pace.batch_size,
                compute=ActorPoolStrategy(size=min(pace.workers, blocks)),
                num_gpus=pace.gpus or None,
                num_cpus=1,
            )
            for block in answered.iter_batches(batch_size=None):
                yield [_received(told) for told in block["answered"]]
                if stopped():
                    return
        finally:
            if started:
                ray.shutdown()


def _to_send(standing: Standing) -> Standing:
    """One whose image a worker can read: of a table its bytes."""
    item = standing.item
    image = item.image.read() if isinstance(item.image, RowImage) else item.image
    return replace(standing, item=replace(item, image=image))


@dataclass(frozen=True)
class _Told:
    """What came of an item, on its way back; errors as words, for they do not travel."""

    answered: Answered
    kind: str = ""
    reason: str = ""


class _Worker:
    """One engine, on one worker."""

    def __init__(self, model: str, system: Mapping[str, Any], columns: list[Column], likelihood: bool) -> None:
        from lorax_vlm.runtime.bases import Bases

        options = dict(system)
        bases = Bases(checkpoints_by_key("hub"), AdapterStore(options.pop("store", None)), **options)
        self._columns, self._likelihood = columns, likelihood
        self._stack = ExitStack()
        self._engine = self._stack.enter_context(bases.use(model))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        standings = [pickle.loads(sent) for sent in batch["sent"]]
        things = ((standing, standing.item) for standing in standings)
        opened = list(open_ahead(things, threads=_THREADS, ahead=len(standings)))
        told = [_told(one) for one in ask(self._engine, opened, self._columns, likelihood=self._likelihood)]
        return {"answered": [pickle.dumps(one) for one in told]}


def _told(answered: Answered) -> _Told:
    error = answered.error
    if error is None:
        return _Told(answered)
    return _Told(replace(answered, error=None), type(error).__name__, str(error))


def _received(data: bytes) -> Answered:
    told: _Told = pickle.loads(data)
    if not told.kind:
        return told.answered
    kind = getattr(errors, told.kind, LoraxError)
    error: LoraxError = kind.__new__(kind, told.reason)
    error.args = (told.reason,)
    return replace(told.answered, error=error)
