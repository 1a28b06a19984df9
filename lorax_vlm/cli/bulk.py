"""Texts about many images: what ``lorax-vlm caption`` and ``ask`` do with folders, tables and lists. No torch."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.answering import Answering, LocalAnswers, Pace
from lorax_vlm.bulk.counts import BulkPlan, BulkReport
from lorax_vlm.bulk.job import BulkJob, BulkProgress
from lorax_vlm.bulk.on_ray import RayAnswers, RayPace
from lorax_vlm.bulk.order import Source, bulk_order
from lorax_vlm.cli.interrupts import told_of
from lorax_vlm.cli.output import as_json_values, print_json, say, say_drawn_only
from lorax_vlm.cli.recording import recording
from lorax_vlm.commands import Recording
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.foreign import printable
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.requests import Engine

if TYPE_CHECKING:
    from rich.progress import TaskID

_EVERY_S, _RATE_AFTER_S = 10.0, 2.0
_LOOKED_AT = 100
_WORKERS = 2
_MOST_ROWS, _MOST_IMAGES = 256, 128
"""That ``auto`` tries first on a GPU, and that are read at a time; a run that is killed loses no more than these."""


@dataclass(frozen=True)
class Manner:
    """How a job is run by a command."""

    system: Mapping[str, Any]
    """Options of a workspace."""
    batch_size: str = str(Pace.batch_size)
    """A number, or ``auto``."""
    ray: str | None = None
    """Address of a cluster. None: in this process."""
    workers: int | None = None
    """Of the cluster. None: two."""
    dry_run: bool = False
    strict: bool = False
    json_progress: bool = False
    as_json: bool = False


RUNNING = ("batch_size", "ray", "workers", "dry_run", "strict", "json_progress")
"""The options that are fields of ``Manner``."""


def run_bulk(
    context: typer.Context,
    source: Source,
    adapters: Sequence[str],
    model: str,
    wishes: dict[str, Any],
    manner: Manner,
) -> None:
    """Say something about many images, and end the command with the exit code that its outcome has.

    Args:
        context: Of the command.
        source: The images; ``-`` for a list of files on standard input, one a line.
        adapters: Their names; none is the base.
        model: The base.
        wishes: Those of ``bulk.order.BulkWishes`` that are given.
        manner: How.
    """
    entry, size, about = get_model_entry(model), _batch_size(manner), str(source)
    if manner.workers is not None and manner.ray is None:
        raise UsageError("--workers are those of a cluster: --ray local, auto or its address.")
    if source == "-":
        data = sys.stdin.buffer.read()
        lines = data.split(b"\0") if b"\0" in data else data.splitlines()
        source = [os.fsdecode(line) for line in lines if line.strip()]
    order = bulk_order(entry, AdapterStore(manner.system["store"]), source, adapters, **wishes)

    @contextmanager
    def engine() -> Iterator[Engine]:
        from lorax_vlm.workspace import Workspace

        if manner.json_progress:  # the library's bars are no JSON
            from transformers.utils import logging as library

            library.disable_progress_bar()
        rows = (_MOST_ROWS if _has_gpu(manner) else None) if size is None else size
        with Workspace(batch_size=rows, **manner.system).engine(model) as opened:
            yield opened

    together = _MOST_IMAGES if size is None else size
    answering: Answering = LocalAnswers(engine, Pace(together))
    if manner.ray is not None:
        system = {**manner.system, "batch_size": together}
        pace = RayPace(manner.ray, manner.workers or _WORKERS, together, gpus=float(_has_gpu(manner)))
        answering = RayAnswers(model, system, pace)
    job = BulkJob(order, answering)
    if manner.dry_run:
        _say(job.plan(), "plan", as_json=manner.as_json)
        return
    progress: BulkProgress = JsonProgress() if manner.json_progress else _shown(quiet=manner.as_json)
    with recording(context, about) as record:
        with _stopped_by_interrupt(job):
            report = job.run(progress if record is None else Noted(progress, record))
        _say(report, "report", as_json=manner.as_json)
        if report.images and entry.miniature and not (manner.as_json or manner.json_progress):
            say_drawn_only(entry.name, [str(item.image) for item in islice(order.items, _LOOKED_AT)])
        if report.interrupted:
            raise typer.Exit(130)
        if manner.strict and report.failed:
            raise typer.Exit(1)


def _batch_size(manner: Manner) -> int | None:
    """Images at a time; None for what memory allows."""
    text = manner.batch_size
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--batch-size is a number of at least 1, or auto, got {text!r}.")
    return int(text)


def _has_gpu(manner: Manner) -> bool:
    """Whether it computes where too much memory is an error, and not the end of the process."""
    import torch

    return torch.cuda.is_available() and manner.system["device"] != "cpu"


def _say(counted: BulkPlan | BulkReport, name: str, *, as_json: bool) -> None:
    if as_json:
        print_json({name: counted})
        return
    for line in counted.lines():
        say(line)


@contextmanager
def _stopped_by_interrupt(job: BulkJob) -> Iterator[None]:
    """The first interrupt, or SIGTERM, ends the job after its batch, the second one at once."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(*_: object) -> None:
        sys.stderr.write("Stopping after this batch; once more stops at once.\n")
        for number in signals:
            signal.signal(number, signal.default_int_handler)
        job.stop()

    with told_of(signals, stop):
        yield


def _shown(*, quiet: bool) -> "BulkProgress":
    return Bar() if sys.stderr.isatty() and not quiet else Lines(quiet=quiet)


class Noted:
    """Tells somebody, and notes in the command's record how far it is."""

    def __init__(self, progress: BulkProgress, record: Recording) -> None:
        self._progress, self._record, self._done, self._failed, self._total = progress, record, 0, 0, 0

    def started(self, plan: BulkPlan) -> None:
        """Pass it on."""
        self._done, self._total = plan.done + plan.staying, plan.images
        self._record.progress(self._done, self._total)
        self._progress.started(plan)

    def said(self, name: str, texts: Mapping[str, str]) -> None:
        """Pass it on."""
        self._note()
        self._progress.said(name, texts)

    def failed(self, name: str, error: LoraxError) -> None:
        """Pass it on."""
        self._failed += 1
        self._note()
        self._progress.failed(name, error)

    def described(self, name: str) -> None:
        """Pass it on."""
        self._progress.described(name)

    def ended(self, report: BulkReport) -> None:
        """Pass it on."""
        self._progress.ended(report)

    def _note(self) -> None:
        self._done += 1
        self._record.progress(self._done, self._total, self._failed)


class Lines:
    """A line now and then, where nobody watches a bar."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet, self._total, self._done, self._failed, self._described = quiet, 0, 0, 0, 0
        self._start, self._said = 0.0, 0.0

    def started(self, plan: BulkPlan) -> None:
        """Say what is to be done."""
        self._total, self._start = plan.to_ask + plan.to_write, time.monotonic()
        self._said, self._noun = self._start, plan.noun
        for line in plan.lines():
            self._say(line)

    def said(self, name: str, texts: Mapping[str, str]) -> None:
        """Count."""
        self._count()
        self._now_and_then()

    def failed(self, name: str, error: LoraxError) -> None:
        """Say why."""
        self._count()
        self._failed += 1
        self._say(f"failed: {error}")
        self._now_and_then()

    def described(self, name: str) -> None:
        """Say how far it is, now and then."""
        self._described += 1
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            self._said = now
            self._say(f"written into {self._described:,} images")

    def ended(self, report: BulkReport) -> None:
        """Nothing more to say."""

    def _count(self) -> None:
        """The rate is that of the images after the first one, which waits for the model to be loaded."""
        if not self._done:
            self._start = time.monotonic()
        self._done += 1

    def _now_and_then(self) -> None:
        now = time.monotonic()
        if now - self._said >= _EVERY_S and now - self._start > _RATE_AFTER_S:  # texts come a batch at a time
            self._said = now
            rate = (self._done - 1) / (now - self._start)
            left, done = (self._total - self._done) / rate, f"{self._done:,} of {self._total:,} {self._noun}s"
            self._say(f"{done}, {rate:.1f} a second, {left:.0f} s left, {self._failed} failed")

    def _say(self, line: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"{printable(line)}\n")


class Bar:
    """A bar with the rate, the time that is left, and how many failed."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[failed]} failed"),
            console=Console(stderr=True, markup=False, highlight=False),
        )
        self._failed, self._start, self._describes = 0, 0.0, 0
        self._into: TaskID | None = None

    def started(self, plan: BulkPlan) -> None:
        """Show it."""
        self._describes = plan.to_ask + plan.to_write + plan.to_describe
        for line in plan.lines():
            self._bar.console.print(printable(line), soft_wrap=True)
        self._task = self._bar.add_task("", total=plan.to_ask + plan.to_write, failed=0, rate="")
        self._start, self._noun = time.monotonic(), plan.noun
        self._bar.start()

    def said(self, name: str, texts: Mapping[str, str]) -> None:
        """Advance."""
        done = self._bar.tasks[0].completed + 1
        rate = f"{done / max(time.monotonic() - self._start, 1e-9):.1f} {self._noun}s/s"
        self._bar.update(self._task, advance=1, rate=rate, failed=self._failed)

    def failed(self, name: str, error: LoraxError) -> None:
        """Say why, above the bar."""
        self._failed += 1
        self._bar.console.print(printable(f"failed: {error}"), soft_wrap=True)
        self.said(name, {})

    def described(self, name: str) -> None:
        """Advance a bar of its own."""
        if self._into is None:
            self._into = self._bar.add_task("", total=self._describes, failed=self._failed, rate="into images")
        self._bar.update(self._into, advance=1)

    def ended(self, report: BulkReport) -> None:
        """Leave it on the screen."""
        self._bar.stop()


class JsonProgress:
    """One JSON object a line, for programs."""

    def started(self, plan: BulkPlan) -> None:
        """What is to be done."""
        self._tell("started", plan=plan)

    def said(self, name: str, texts: Mapping[str, str]) -> None:
        """An image and its texts."""
        self._tell("said", name=name, texts=texts)

    def failed(self, name: str, error: LoraxError) -> None:
        """An image that has none."""
        self._tell("failed", name=name, error=type(error).__name__, message=str(error))

    def described(self, name: str) -> None:
        """An image whose turn it was to hold its text."""
        self._tell("described", name=name)

    def ended(self, report: BulkReport) -> None:
        """The end, and what was done until then."""
        self._tell("ended", report=report)

    def _tell(self, event: str, **facts: object) -> None:
        sys.stderr.write(json.dumps(as_json_values({"event": event, **facts}), allow_nan=False) + "\n")
        sys.stderr.flush()
