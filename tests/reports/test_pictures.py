"""Pictures with the words of others in them: drawn letter for letter, never as mathematics."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.evaluation.results import VQAReport
from lorax_vlm.reports.plot import draw_accuracy, drawable, save_figure
from lorax_vlm.reports.sheet import draw_comparison_sheet
from lorax_vlm.training.progress import draw_training_curve
from lorax_vlm.types import Interval

MATHEMATICS = (
    "$5 off $10 today",
    "5$ or 6$ a kg",
    r"a price of $\frac$ each",
    "$^$",
    "$x_{1$ on it",
    r"$\$",
    "_hidden",
)
PICTURE = Image.new("RGB", (40, 40))


def sheet(caption: str, folder: Path, name: str = "base") -> np.ndarray:
    """The pixels of a sheet with one caption, ``(H, W)``."""
    return np.asarray(Image.open(draw_comparison_sheet(PICTURE, {name: caption}, folder / "sheet.png")).convert("L"))


@pytest.mark.parametrize("text", MATHEMATICS)
def test_a_caption_is_drawn_letter_for_letter(text: str, tmp_path: Path) -> None:
    """All letters of a caption are equally wide, so another letter for each dollar changes these places alone."""
    one, other = sheet(text, tmp_path), sheet(text.replace("$", "#"), tmp_path)
    assert one.shape == other.shape
    changed = (one != other).any(axis=0).sum()
    assert 4 * text.count("$") <= changed <= 17 * text.count("$")


@pytest.mark.parametrize("text", [*MATHEMATICS, "\x1b[2Jred", "日本 \u202e😀", "", "word " * 300])
def test_words_of_others_can_stand_everywhere(text: str, tmp_path: Path) -> None:
    draw_comparison_sheet(PICTURE, {text: text, "base": text}, tmp_path / "a.png", title=text)
    draw_training_curve([{"step": 1, "loss": 1.0}, {"step": 1, "eval_loss": 0.5}], text, tmp_path / "curve.png")
    share = Interval(0.5, 0.4, 0.6, 40, 40)
    report = VQAReport(text, "b", "s", "exact match", share, {text: share}, (), 1.0)
    assert draw_accuracy([report], [(text, [share])]).startswith(b"\x89PNG")
    assert drawable(text).isprintable()


def test_a_curve_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was trained is not lost for it."""
    (tmp_path / "file").touch()
    draw_training_curve([{"step": 1, "loss": 1.0}], "x", tmp_path / "file" / "curve.png")
    assert "file/curve.png cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("name", "start"), [("a", b"\x89PNG"), ("a.png", b"\x89PNG"), ("a.odd", b"\x89PNG"), ("a.pdf", b"%PDF")]
)
def test_what_is_named_is_what_is_written(name: str, start: bytes, tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    FigureCanvasAgg(figure)
    assert save_figure(figure, tmp_path / "deep" / name, dpi=50) == tmp_path / "deep" / name
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]
    assert (tmp_path / "deep" / name).read_bytes().startswith(start)
