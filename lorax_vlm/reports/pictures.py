"""Pictures of what is in an adapter, and of which adapters belong to which bases. No torch."""

import io
from pathlib import Path
from typing import Any

from lorax_vlm.adapters.inspection import Inspection
from lorax_vlm.errors import UsageError
from lorax_vlm.exchange.matrix import CompatibilityMatrix
from lorax_vlm.reports.plot import drawable, save_figure, write_picture

_DPI = 110

_COLORS = {
    "exact": "#1a7f37",
    "L0": "#4aa564",
    "L1": "#8cc98f",
    "L2": "#cfe3a5",
    "L3": "#fbd38d",
    "L4": "#f6ad75",
    "L5": "#e5736b",
    "?": "#d0d7de",
}


def draw_matrix(matrix: CompatibilityMatrix, path: Path) -> Path:
    """Draw the matrix into a picture, a PNG unless the ending of ``path`` says otherwise, with what its words mean.

    Raises:
        UsageError: There are no adapters.
        PathError: It cannot be written there.
    """
    return save_figure(_matrix_figure(matrix), path, _DPI)


def matrix_png(matrix: CompatibilityMatrix) -> bytes:
    """The matrix as a PNG, for a page.

    Raises:
        UsageError: There are no adapters.
    """
    buffer = io.BytesIO()
    write_picture(_matrix_figure(matrix), buffer, _DPI)
    return buffer.getvalue()


def _matrix_figure(matrix: CompatibilityMatrix) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not matrix.adapters:
        raise UsageError("There are no adapters to draw.")
    rows, columns = len(matrix.adapters), len(matrix.bases)
    figure = Figure(figsize=(5.5 + 1.5 * columns, 1.6 + 0.42 * rows + 0.28 * len(matrix.legend)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for y, row in enumerate(matrix.rows()):
        for x, word in enumerate(row[1:]):
            axes.add_patch(_rectangle(x, y, _COLORS[word]))
            axes.text(x, y, word, ha="center", va="center", color="white" if word == "exact" else "#1c2430")
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), list(map(drawable, matrix.bases)), fontsize=10, parse_math=False)
    axes.set_yticks(range(rows), list(map(drawable, matrix.adapters)), fontsize=10, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    legend = "\n".join(f"{word}: {meaning}" for word, meaning in matrix.legend.items())
    axes.set_xlabel(legend, fontsize=9, loc="left", linespacing=1.5, parse_math=False)
    return figure


def draw_inspection(inspection: Inspection, path: Path, title: str = "") -> Path:
    """Draw the norm and the effective rank of every site, by layer and component, into a picture; see ``draw_matrix``.

    ``title`` is the adapter's name, by default that of its folder.

    Raises:
        PathError: It cannot be written there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6 * len(inspection.by_component) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(inspection.by_component), 2, squeeze=False)
    for (component, sites), (norms, ranks) in zip(inspection.by_component.items(), grid, strict=True):
        roles = list(dict.fromkeys(site.role for site in sites))
        for role in roles:
            own = [site for site in sites if site.role == role]
            layers = [site.layer if site.layer is not None else 0 for site in own]
            norms.plot(layers, [site.norm for site in own], marker="o", linestyle="", label=role)
            ranks.plot(layers, [site.effective_rank for site in own], marker="o", linestyle="", label=role)
        dead = [site for site in sites if site.dead]
        if dead:
            x = [site.layer or 0 for site in dead]
            norms.plot(x, [site.norm for site in dead], marker="x", linestyle="", color="#b42318", label="dead")
        norms.set(title=f"{component}: norm of the update", xlabel="layer", ylim=(0, None))
        top = max(site.rank for site in sites)
        ranks.set(title=f"{component}: effective rank (of {top})", xlabel="layer", ylim=(0, top * 1.05))
        for axes in (norms, ranks):
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", integer=True)
        norms.legend(fontsize=8)
    heading = f"{drawable(title or inspection.folder.name)}: {len(inspection.sites)} sites"
    figure.suptitle(heading, fontsize=11, parse_math=False)
    return save_figure(figure, path, _DPI)


def _rectangle(x: int, y: int, color: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=2)
