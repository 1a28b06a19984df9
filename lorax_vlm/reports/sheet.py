"""The comparison sheet: one image, and what the base and each adapter say about it."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from lorax_vlm.data.world.captions import CaptionScore
from lorax_vlm.foreign import printable
from lorax_vlm.reports.plot import drawable, save_figure

_WRAP_CHARACTERS = 62
_MOST_LINES = 1500  # a picture may have 65,536 rows of pixels


def draw_comparison_sheet(
    image: Image.Image,
    captions: Mapping[str, str],
    path: Path,
    *,
    scores: Mapping[str, CaptionScore] | None = None,
    title: str = "",
) -> Path:
    """Draw the image beside its captions into a PNG, letter for letter as they are.

    Args:
        image: RGB.
        captions: Text by name of adapter, in the order to be shown.
        path: Where to write it; parents are created. Another ending than ``.png``, such as ``.pdf``, is obeyed.
        scores: Form and content of each caption where the truth is known; other captions get no marks.
        title: Heading.

    Raises:
        PathError: It cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(1, _MOST_LINES // max(1, len(captions)) - 2)
    wrapped = {name: _lines(text, most) for name, text in captions.items()}
    lines = sum(len(text) + 1.7 for text in wrapped.values())
    height = max(4.0, 0.24 * lines + 0.8)
    figure = Figure(figsize=(11, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    picture, text_area = figure.subplots(1, 2, width_ratios=(4, 7))
    picture.imshow(image)
    picture.axis("off")
    text_area.axis("off")
    text_area.set(xlim=(0, 1), ylim=(lines, 0))
    if title:
        figure.suptitle(drawable(title, 100), fontsize=12, parse_math=False)
    y = 0.5
    for name, text in wrapped.items():
        text_area.text(
            0, y, drawable(name, 60), fontsize=11, weight="bold", va="center", color="#1f3b73", parse_math=False
        )
        if scores and name in scores:
            for x, (label, good) in zip((0.62, 0.84), _labels(scores[name]), strict=True):
                mark, color = ("✓", "#1a7f37") if good else ("✗ not", "#c62828")
                text_area.text(x, y, f"{mark} {label}", fontsize=10, va="center", color=color)
        for offset, line in enumerate(text):
            text_area.text(
                0.01, y + 1 + offset, line, fontsize=11, va="center", family="DejaVu Sans Mono", parse_math=False
            )
        y += len(text) + 1.7
    return save_figure(figure, path, dpi=110)


def _lines(text: str, most: int) -> list[str]:
    lines = textwrap.wrap(printable(text), _WRAP_CHARACTERS, max_lines=most, placeholder=" ...")
    return lines or ["(empty)"]


def _labels(score: CaptionScore) -> tuple[tuple[str, bool], tuple[str, bool]]:
    return ("in style", score.in_style), ("true", score.true)
