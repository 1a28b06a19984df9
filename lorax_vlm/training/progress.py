"""Who is told of a run while it lasts, a progress bar among them, and the curve that is drawn afterwards."""

import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text
from transformers import TrainerCallback

from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.foreign import printable, quoted
from lorax_vlm.training.random_state import kept_random_state

logger = logging.getLogger(__name__)
_LONGEST_TITLE = 90


@dataclass(frozen=True)
class Sample:
    """What an adapter says while it is trained, about one of its validation examples."""

    example: str
    """Name of the example."""
    question: str
    """Empty where a caption is asked for."""
    expected: str
    said: str
    """Empty where nothing is said."""
    error: str = ""
    """Why it could not be asked."""


class Progress(Protocol):
    """Is told how a run goes, on the thread that trains: so it should be quick, and what it raises ends the run."""

    def started(self, steps: Mapping[str, int], done: int) -> None:
        """A run begins, or goes on.

        Args:
            steps: Optimiser steps of each adapter, by its name.
            done: Steps that were done before.
        """
        ...

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        """A step is done; ``losses`` are the latest training losses by adapter, where there are new ones."""
        ...

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Adapters were measured on their validation examples."""
        ...

    def sampled(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        """An adapter was asked about some of its validation examples, after a measurement."""
        ...

    def stopped(self, name: str, step: int) -> None:
        """An adapter needs no further steps."""
        ...

    def finished(self) -> None:
        """The run has ended, well or not."""
        ...


def training_key(name: str) -> str:
    """How a joint run's log calls the training loss of an adapter. Names have no slash: nothing else is called so."""
    return f"loss/{name}"


def validation_key(name: str) -> str:
    """And its validation loss."""
    return f"eval_loss/{name}"


def stopped_key(name: str) -> str:
    """And the step at which it stopped early."""
    return f"stopped_at/{name}"


Sampler = Callable[[], Sequence[Sample]]
Show = bool | Progress
"""True: a bar on the screen. False: nothing. Or whoever is told."""


def listener(show: Show) -> Progress | None:
    """Who is told of a run.

    Raises:
        UsageError: It is nobody that could be.
    """
    if isinstance(show, bool):
        return ProgressBar() if show else None
    told = ("started", "stepped", "validated", "sampled", "stopped", "finished")
    if missing := [name for name in told if not callable(getattr(show, name, None))]:
        wanted = f"True, False, or a Progress, which has the methods {', '.join(told)}"
        raise UsageError(f"progress must be {wanted}; {quoted(show)} has no {', '.join(missing)}.")
    return show


class ProgressBar:
    """One line per adapter: name, bar, step, training loss, validation loss, time left."""

    def __init__(self, console: Console | None = None) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )

    def started(self, steps: Mapping[str, int], done: int) -> None:
        """Show the bar, at the step a resumed run starts from."""
        for name, total in steps.items():
            self._bar.add_task(name, total=total, loss="-", validation="-")
        self.stepped(done, {})
        self._bar.start()

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        """Advance, and show the latest losses."""
        for line in self._bar.tasks:
            self._bar.update(line.id, completed=min(step, line.total or step))
        self._show("loss", losses)

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        """Show the latest losses."""
        self._show("validation", losses)

    def sampled(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        """Print what is said, above the bar."""
        for sample in samples:
            asked = f" {quoted(sample.question)}" if sample.question else ""
            said = f"cannot be asked: {sample.error}" if sample.error else quoted(sample.said)
            line = f"step {step}, {name}, {sample.example}{asked}: {said}, expected {quoted(sample.expected)}"
            self._bar.console.print(Text(printable(line)), soft_wrap=True)

    def stopped(self, name: str, step: int) -> None:
        """The line of an adapter that stopped early is full."""
        for line in self._bar.tasks:
            if line.description == name:
                self._bar.update(line.id, total=step)

    def finished(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.stop()

    def _show(self, column: str, losses: Mapping[str, float]) -> None:
        for line in self._bar.tasks:
            if line.description in losses:
                line.fields[column] = f"{losses[line.description]:.4f}"


class Telling(TrainerCallback):
    """Tells somebody what the Trainer does: the log of a run of one adapter has plain names, else the adapters'."""

    def __init__(self, progress: Progress, steps: Mapping[str, int], samplers: Mapping[str, Sampler | None]) -> None:
        """Tell somebody.

        Args:
            progress: Is told.
            steps: Optimiser steps of each adapter.
            samplers: By name, what asks an adapter as it is now; None where that is not wanted.
        """
        self._progress, self._steps, self._samplers = progress, dict(steps), samplers
        self._stopped: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin."""
        self._progress.started(self._steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self._progress.stepped(state.global_step, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Pass on the latest losses, and which adapter has stopped."""
        logs = dict(logs or {})
        if losses := self._of(logs, training_key, "loss"):
            self._progress.stepped(state.global_step, losses)
        if losses := self._of(logs, validation_key, "eval_loss"):
            self._progress.validated(state.global_step, losses)
            self._sample(state.global_step, losses)
        for name in self._steps:
            if stopped_key(name) in logs and name not in self._stopped:
                self._stopped.add(name)
                self._progress.stopped(name, logs[stopped_key(name)])

    def _sample(self, step: int, measured: Iterable[str]) -> None:
        """Pass on what the adapters say that were just measured. It is worth less than the run, which it cannot end."""
        for name in measured:
            sample = self._samplers.get(name)
            if step == 0 or sample is None:
                continue
            try:
                with kept_random_state():
                    samples = sample()
            except (LoraxError, OSError) as error:
                logger.warning("%r cannot be asked while it is trained: %s", name, error)
            else:
                self._progress.sampled(step, name, samples)

    def _of(self, logs: Mapping[str, Any], key: Callable[[str], str], alone: str) -> dict[str, float]:
        found = {name: logs.get(key(name)) for name in self._steps}
        if len(found) == 1 and alone in logs:
            found = dict.fromkeys(found, logs[alone])
        return {name: float(value) for name, value in found.items() if value is not None}


def draw_training_curve(history: Sequence[Mapping[str, Any]], title: str, path: Path) -> Path:
    """Draw training and validation loss over steps into a PNG.

    Args:
        history: The Trainer's log: rows with ``step`` and ``loss`` or ``eval_loss``.
        title: Heading of the picture.
        path: Where to write it; parents are created. A place that cannot be written is said in the log: what was
            trained is worth more than its picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    figure.subplots_adjust(left=0.15, right=0.98, bottom=0.13, top=0.91)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", {"alpha": 0.6}), ("eval_loss", "validation", {"marker": "o"})):
        rows = [(row["step"], row[key]) for row in history if key in row]
        if rows:
            axes.plot(*zip(*rows, strict=True), label=label, **style)
    axes.set_title(printable(title)[:_LONGEST_TITLE], parse_math=False)
    axes.set(xlabel="step", ylabel="loss per target token", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(path, dpi=120)
    except OSError as error:
        logger.warning("The training curve %s cannot be written: %s", path, error.strerror or error)
    return path
