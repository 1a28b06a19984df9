"""One self-contained HTML page: which adapters belong where, and what moving some of them did. No torch."""

from collections.abc import Sequence
from pathlib import Path

from lorax_vlm.evaluation.results import TaskReport
from lorax_vlm.exchange.matrix import LEGEND, CompatibilityMatrix
from lorax_vlm.exchange.report import TransferReport, share_text
from lorax_vlm.reports.page import picture_address, write_page
from lorax_vlm.reports.pictures import matrix_png


def write_exchange_page(
    matrix: CompatibilityMatrix,
    reports: Sequence[TransferReport],
    path: Path,
    *,
    tasks: Sequence[TaskReport] = (),
    title: str = "Exchange of adapters",
) -> Path:
    """Write the page; it needs no other file and no connection.

    Args:
        matrix: At least one adapter.
        reports: Of transfers.
        path: Where to write it; parents are created.
        tasks: How good the adapters are on their own bases.
        title: Heading.

    Raises:
        UsageError: There are no adapters.
        PathError: It cannot be written there.
    """
    return write_page(
        "exchange.html",
        path,
        title,
        matrix=matrix,
        legend=LEGEND,
        reports=list(reports),
        tasks=list(tasks),
        picture=picture_address(matrix_png(matrix), "png"),
        share=share_text,
    )
