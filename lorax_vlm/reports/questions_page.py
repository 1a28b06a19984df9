"""One self-contained HTML page of a VQA evaluation: table, plot, what the image contributes, examples, all errors.

No torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.results import AnswerRecord, VQAReport
from lorax_vlm.evaluation.summary import image_line, missing_line, name_of, seen_lines, table_rows
from lorax_vlm.reports.page import flat, picture_address, thumbnail, write_page
from lorax_vlm.reports.plot import draw_accuracy
from lorax_vlm.types import Interval, percent

_THUMBNAIL_PX, _SMALL_PX = 160, 80
_EXAMPLES, _PICTURED_ERRORS = 12, 300


def write_vqa_page(
    reports: Sequence[VQAReport],
    images: Mapping[str, Image.Image],
    path: Path,
    *,
    title: str,
    differences: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Path:
    """Write the page; it needs no other file and no connection.

    Args:
        reports: On the same questions, the base first.
        images: Image by name of the example, for those that are to be shown. One is looked up at a time, and only its
            thumbnail is kept.
        path: Where to write it; parents are created.
        title: Heading.
        differences: Lines that compare the reports.
        notes: Lines about what was asked, and what else was found.

    Raises:
        UsageError: There are no reports.
        PathError: It cannot be written there.
    """
    if not reports:
        raise UsageError("At least one report is needed.")
    first = reports[0]
    named = [{"name": name_of(report), "report": report, "effect": report.image_effect} for report in reports]
    rows = table_rows(reports)
    questions = list(zip(*(report.records for report in reports), strict=True))
    wrong = [row for row in questions if any(record.score < 1 for record in row)]
    return write_page(
        "questions.html",
        path,
        title,
        count=first.count,
        images=first.protocol.get("images"),
        mixed=len(first.by_metric) > 1,
        metrics=first.by_metric or {first.metric: first.accuracy},
        reports=named,
        rows=[{"name": name, "count": shares[0].count, "shares": shares} for name, shares in rows],
        cell=Interval.percent,
        percent=_percent,
        lines=[*seen_lines(reports), *notes],
        differences=differences,
        plot=picture_address(draw_accuracy(reports, rows), "png"),
        plotted="; ".join(
            f"{row['name']} {report.accuracy.percent()}" for row, report in zip(named, reports, strict=True)
        ),
        ablated=[row for row in named if row["effect"]],
        ablation_lines=[line for line in (*map(image_line, reports), missing_line(reports)) if line],
        examples=_examples(reports, questions, images),
        errors=_errors(reports, wrong, images),
        error_count=len(wrong),
        protocol=list(flat(first.protocol)),
    )


def _verdict(score: float) -> str:
    return "right" if score >= 1 else "wrong" if score <= 0 else f"{percent(score, 0)} right"


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


Row = tuple[AnswerRecord, ...]


def _spread(row: Row) -> float:
    """How far apart the best and the worst answer are."""
    scores = [record.score for record in row]
    return max(scores) - min(scores)


def _examples(reports: Sequence[VQAReport], rows: Sequence[Row], images: Mapping[str, Image.Image]) -> list[Any]:
    """The questions whose images are at hand, those first on which the reports differ."""
    pictured = [row for row in rows if row[0].example in images]
    pictured.sort(key=lambda row: (-_spread(row), len({record.answer for record in row}) == 1))
    found: list[dict[str, object]] = []
    for row in pictured:
        if len(found) == _EXAMPLES:
            break
        if picture := thumbnail(images, row[0].example, _THUMBNAIL_PX, "png"):
            found.append(_shown(reports, row) | {"image": picture})
    return found


def _errors(
    reports: Sequence[VQAReport], rows: Sequence[Row], images: Mapping[str, Image.Image]
) -> Iterator[dict[str, object]]:
    """Every question that was answered wrong, the first ones with their image."""
    for number, row in enumerate(rows):
        known = number < _PICTURED_ERRORS and row[0].example in images
        picture = thumbnail(images, row[0].example, _SMALL_PX, "jpeg") if known else ""
        yield _shown(reports, row) | {"image": picture}


def _shown(reports: Sequence[VQAReport], row: Row) -> dict[str, object]:
    first = row[0]
    answers = [
        {
            "name": name_of(report),
            "text": record.error or record.answer or "(nothing)",
            "verdict": _verdict(record.score),
        }
        for report, record in zip(reports, row, strict=True)
    ]
    expected = ", ".join(dict.fromkeys(first.annotators))
    alt = f"{first.example}, asked: {first.question}"
    return {"name": first.example, "alt": alt, "question": first.question, "expected": expected, "answers": answers}
