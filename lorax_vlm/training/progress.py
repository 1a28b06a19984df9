"""What a person sees of a run: a progress bar while it lasts, a curve afterwards."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from lorax_vlm.foreign import printable

logger = logging.getLogger(__name__)
_LONGEST_TITLE = 90


class ProgressBar(TrainerCallback):
    """One line per adapter: name, bar, step, training loss, validation loss, time left."""

    def __init__(self, steps: Mapping[str, int], console: Console | None = None) -> None:
        """Take the optimiser steps of each adapter, by its name."""
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[validation]}"),
            TimeRemainingColumn(),
            console=console,
        )
        for name, total in steps.items():
            self._bar.add_task(name, total=total, loss="-", validation="-")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar, at the step a resumed run starts from."""
        self._advance(state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance."""
        self._advance(state.global_step)

    def _advance(self, step: int) -> None:
        for line in self._bar.tasks:
            self._bar.update(line.id, completed=min(step, line.total or step))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the latest losses; the line of an adapter that stopped early is full."""
        logs = dict(logs or {})
        for line in self._bar.tasks:
            own = logs if len(self._bar.tasks) == 1 else {}
            for key, column in (("loss", "loss"), ("eval_loss", "validation")):
                value = logs.get(key.replace("loss", f"{line.description}_loss"), own.get(key))
                if value is not None:
                    line.fields[column] = f"{value:.4f}"
            if f"{line.description}_stopped_at" in logs:
                self._bar.update(line.id, total=logs[f"{line.description}_stopped_at"])

    def stop(self) -> None:
        """Leave the finished bar on the screen."""
        self._bar.stop()


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

    figure = Figure(figsize=(7, 4), layout="constrained")
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
