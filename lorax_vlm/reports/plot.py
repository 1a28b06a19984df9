"""Bars of accuracy with intervals, and what every picture with foreign texts needs: they are drawn as written.

No torch.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lorax_vlm.evaluation.results import VQAReport
from lorax_vlm.evaluation.summary import name_of
from lorax_vlm.foreign import printable
from lorax_vlm.paths import WRITTEN_BY, replacing
from lorax_vlm.types import Interval

_MOST_ROWS = 12
_MARKS: Mapping[str, dict[str, Any]] = {
    "png": {"metadata": {"Software": WRITTEN_BY}},
    **{key: {"metadata": {"Creator": WRITTEN_BY}} for key in ("pdf", "svg")},
    **{key: {"pil_kwargs": {"comment": WRITTEN_BY}} for key in ("jpg", "jpeg")},
}
"""Options of a figure by the kind of its file, so that it is known again."""


def drawable(text: str, limit: int = 200) -> str:
    """A foreign text cut short and without what cannot be drawn. Draw it with ``parse_math=False``."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def save_figure(figure: Any, path: Path, dpi: int) -> Path:
    """Write a figure to exactly ``path``, as PNG where its ending names no other kind of picture. Parents are created.

    Raises:
        PathError: It cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        kind = "png"
    with replacing(path) as file:
        write_picture(figure, file, dpi, kind)
    return path


def write_picture(figure: Any, file: IO[bytes], dpi: int, kind: str = "png") -> None:
    """Write a figure to an open file, without a word about characters that no font has; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, dpi=dpi, format=kind, **_MARKS.get(kind, {}))


def draw_accuracy(reports: Sequence[VQAReport], rows: Sequence[tuple[str, list[Interval]]]) -> bytes:
    """A PNG with one group of bars for each row.

    Args:
        reports: One bar of each group.
        rows: Names and shares, one for each report; of many only the first are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = rows[:_MOST_ROWS]
    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(reports)
    for number in range(len(reports)):
        shares = [values[number] for _, values in rows]
        errors = [[max(0.0, v.value - v.low) for v in shares], [max(0.0, v.high - v.value) for v in shares]]
        places = [position + (number - (len(reports) - 1) / 2) * width for position in range(len(rows))]
        axes.bar(places, [v.value for v in shares], width * 0.95, yerr=errors, capsize=2, label=f"bar {number}")
    axes.set_xticks(range(len(rows)), [drawable(name, 24) for name, _ in rows], parse_math=False)
    axes.set(ylim=(0, 1.02), ylabel="accuracy")
    axes.grid(axis="y", alpha=0.3)
    # A name given as a label would be read as mathematics, and left out when it begins with an underscore.
    legend = figure.legend(loc="outside upper right", ncols=min(len(reports), 3), frameon=False)
    for text, report in zip(legend.get_texts(), reports, strict=True):
        text.set_parse_math(False)
        text.set_text(drawable(name_of(report), 40))
    buffer = io.BytesIO()
    write_picture(figure, buffer, dpi=120)
    return buffer.getvalue()
