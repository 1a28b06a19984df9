"""How evaluations look on the screen. No torch."""

from collections.abc import Mapping, Sequence

from lorax_vlm.cli.output import print_table, say
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport, VQAReport
from lorax_vlm.evaluation.summary import (
    Effects,
    caption_lines,
    caption_notes,
    caption_table,
    caution_lines,
    effect_lines,
    image_line,
    metrics_line,
    missing_line,
    name_of,
    seen_lines,
    table_rows,
)
from lorax_vlm.types import Interval, percent


def print_vqa_reports(reports: Sequence[VQAReport], lines: Sequence[str], title: str) -> None:
    """Accuracy in total and by type, what speaks against a verdict, differences, and whether the image matters.

    Args:
        reports: On the same questions.
        lines: Of ``summary.difference_lines``.
        title: Heading.
    """
    first = reports[0]
    rows: list[tuple[object, ...]] = [
        (name, shares[0].count, *(share.percent() for share in shares)) for name, shares in table_rows(reports)
    ]
    rows.append(("time", "", *(f"{report.time_s:.1f} s" for report in reports)))
    heading = first.metric if len(first.by_metric) < 2 else "accuracy"
    print_table([heading, "questions ", *(f"{name_of(report)} " for report in reports)], rows, title)
    if several := metrics_line(first):
        say(several)
    for line in [*caution_lines(first.accuracy), *seen_lines(reports), *lines]:
        say(line)
    _print_ablations([report for report in reports if report.image_effect is not None])
    for report in reports:
        failed = [record for record in report.records if record.error]
        if failed:
            say(
                f"{name_of(report)}: {len(failed)} questions could not be asked and count as wrong; "
                f"the first: {failed[0].error}"
            )


def say_side_effects(effects: Effects) -> None:
    """Say it, harm in red."""
    for line, harmful in effect_lines(effects):
        say(line, style="red" if harmful else "")


def _print_ablations(reports: Sequence[VQAReport]) -> None:
    if not reports:
        return
    print_table(
        ["adapter", "own image ", "another's image ", "grey image "],
        [(name_of(r), percent(r.accuracy.value), _share(r.shuffled), _share(r.blank)) for r in reports],
        "Does the image matter?",
    )
    for report in reports:
        ignored = report.image_effect is not None and report.image_effect.verdict == "ignored"
        say(image_line(report), style="red" if ignored else "")
    if missing := missing_line(reports):
        say(missing)


def print_caption_reports(
    reports: Sequence[CaptionReport | ReferenceReport], differences: Mapping[str, Interval], title: str
) -> None:
    """Captions judged by scenes or references, and how adapters differ from the base.

    Args:
        reports: Of the base and of adapters.
        differences: By name of adapter.
        title: Heading.
    """
    columns, rows = caption_table(reports)
    print_table(columns, rows, title)
    if isinstance(reports[0], ReferenceReport) and not reports[0].text_metrics:
        say("CIDEr, BLEU-4 and ROUGE-L: pip install 'lorax-vlm[metrics]'")
    for line in [*caption_notes(reports), *caption_lines(reports, differences)]:
        say(line)


def _share(share: float | None) -> str:
    return "-" if share is None else percent(share)
