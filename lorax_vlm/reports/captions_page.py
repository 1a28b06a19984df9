"""One self-contained HTML page of an evaluation of captions: table, differences, what was wrong. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.summary import caption_notes, caption_table, name_of
from lorax_vlm.reports.page import flat, thumbnail, write_page

_SIDE_PX = 160


def write_captions_page(
    reports: Sequence[CaptionReport | ReferenceReport],
    images: Mapping[str, Image.Image],
    path: Path,
    *,
    title: str,
    differences: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page; it needs no other file and no connection.

    Args:
        reports: Of the base and of adapters, all judged by scenes or all by references.
        images: Image by name of the example, or by ``scene SEED``. One is looked up at a time.
        path: Where to write it; parents are created.
        title: Heading.
        differences: Lines that compare adapters with the base.
        notes: Lines about what was captioned, and what else was found.

    Raises:
        UsageError: There are no reports.
        PathError: It cannot be written there.
    """
    if not reports:
        raise UsageError("At least one report is needed.")
    columns, rows = caption_table(reports)
    return write_page(
        "captions.html",
        path,
        title,
        judged=_judged_by(reports[0]),
        columns=[column.strip() for column in columns],
        rows=rows,
        lines=[*caption_notes(reports), *notes],
        differences=differences,
        parts=[
            {"heading": _heading(report), "failures": [_shown(failure, images) for failure in report.failures]}
            for report in reports
        ],
        protocol=list(flat(reports[0].protocol)),
    )


def _judged_by(report: CaptionReport | ReferenceReport) -> str:
    if isinstance(report, CaptionReport):
        return f"Captions of {report.count} scenes, judged by what is in them."
    return f"Captions of {report.count} images, compared word for word with their references."


def _heading(report: CaptionReport | ReferenceReport) -> str:
    wrong = sum(score < 1 for score in report.scores)
    shown = f", the first {len(report.failures)}" if len(report.failures) < wrong else ""
    if isinstance(report, CaptionReport):
        return f"{name_of(report)}: {wrong} of {report.count} are not {report.style} and true{shown}"
    return f"{name_of(report)}: {wrong} of {report.count} differ from their references{shown}"


def _shown(failure: Mapping[str, Any], images: Mapping[str, Image.Image]) -> dict[str, object]:
    name = str(failure.get("example") or f"scene {failure['scene']}")
    why = [] if failure.get("in_style", True) else ["not in style"]
    why += [] if failure.get("true", True) else ["not true"]
    others = failure.get("references", 1) - 1
    expected = f"expected: {failure['reference']}" + (f", or {others} others" if others else "")
    return {
        "name": name,
        "caption": failure["caption"] or "(nothing)",
        "expected": "; ".join([*why, expected]),
        "image": thumbnail(images, name, _SIDE_PX, "png") if name in images else "",
    }
