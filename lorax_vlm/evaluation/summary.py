"""What is said of evaluations, on the screen and on the HTML page. No torch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport, VQAReport
from lorax_vlm.types import ImageVerdict, Interval, percent

if TYPE_CHECKING:
    from lorax_vlm.evaluation.side_effects import SideEffects

_VERDICTS: Mapping[ImageVerdict, str] = {
    "depends": "depends on the image",
    "ignored": "does not depend on the image",
    "cannot tell": "cannot tell whether it depends on the image",
}


def name_of(report: VQAReport | CaptionReport | ReferenceReport) -> str:
    """The adapter's name, or base."""
    return report.adapter or "base"


def seen_lines(reports: Sequence[VQAReport | CaptionReport | ReferenceReport]) -> list[str]:
    """What adapters were trained on of the images they were measured with."""
    return list(dict.fromkeys(report.seen.line() for report in reports if report.seen is not None))


def table_rows(reports: Sequence[VQAReport]) -> list[tuple[str, list[Interval]]]:
    """Names and shares of reports on the same questions: of all, or of each metric if there are two; of each type."""
    first = reports[0]
    if len(first.by_metric) > 1:
        rows = [(metric, [report.by_metric[metric] for report in reports]) for metric in first.by_metric]
    else:
        rows = [("all", [report.accuracy for report in reports])]
    # A type may be called "all"; its row must not look like that of all.
    names = {kind: f"type {kind!r}" if kind in dict(rows) else kind for kind in first.by_kind}
    return rows + [(name, [report.by_kind[kind] for report in reports]) for kind, name in names.items()]


def metrics_line(report: VQAReport) -> str:
    """How many questions are judged by what, where that is more than one metric; else nothing."""
    if len(report.by_metric) < 2:
        return ""
    several, one = ("vqa accuracy", "several annotators"), ("exact match", "few or one")
    parts = [f"{report.by_metric[metric].count} by {metric} ({who})" for metric, who in (several, one)]
    return f"Questions are judged {' and '.join(parts)}; the two are not mixed."


def difference_text(difference: Interval) -> str:
    """A paired difference with its interval, and whether it says anything."""
    if difference.few:
        return difference.points()
    value, low, high = (
        f"{round(100 * part, 1) + 0.0:+.1f}" for part in (difference.value, difference.low, difference.high)
    )
    unsure = "" if difference.above_zero or difference.below_zero else "; the interval includes no difference"
    return f"{value} points (95 %: {low} to {high}{unsure})"


def difference_lines(report: VQAReport, differences: Mapping[str, Interval]) -> list[str]:
    """How a report differs from the base's, by metric where there is more than one."""
    several = len(differences) > 1
    return [
        f"{name_of(report)} against base{f', {metric}' if several else ''}: {difference_text(difference)}"
        for metric, difference in differences.items()
    ]


def image_line(report: VQAReport) -> str:
    """Whether the image matters to it, and how that is known; empty where that was not asked."""
    effect = report.image_effect
    return f"{name_of(report)} {_VERDICTS[effect.verdict]}: {effect.reason}." if effect is not None else ""


def missing_line(reports: Sequence[VQAReport]) -> str:
    """How many questions could not be asked about another image; empty where all could."""
    missing = max((r.image_effect.without_another for r in reports if r.image_effect is not None), default=0)
    return f"{missing} questions had no other image to take and are left out of that column." if missing else ""


def caption_table(reports: Sequence[CaptionReport | ReferenceReport]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Names of columns, those of figures with a space after them, and a row for each report.

    All are judged by scenes, or all by references.
    """
    judged = [report for report in reports if isinstance(report, CaptionReport)]
    if judged:
        shares = ("in_style", "true", "in_style_and_true")
        return ["judged as", "adapter", "scenes ", "in style ", "true ", "both ", "time "], [
            (r.style, name_of(r), r.count, *(r.intervals[name].percent() for name in shares), f"{r.time_s:.1f} s")
            for r in judged
        ]
    compared = [report for report in reports if isinstance(report, ReferenceReport)]
    metrics = list(dict.fromkeys(metric for report in compared for metric in report.text_metrics))
    columns = ["captions", "exact match", "loss per token", *metrics, "time"]
    return ["adapter", *(f"{column} " for column in columns)], [
        (
            name_of(r),
            r.count,
            r.interval.percent() if r.interval else percent(r.exact_match),
            f"{r.loss:.4f}" if r.loss is not None else "not finite",
            *("-" if (value := r.text_metrics.get(metric)) is None else f"{value:.3f}" for metric in metrics),
            f"{r.time_s:.1f} s",
        )
        for r in compared
    ]


def caption_notes(reports: Sequence[CaptionReport | ReferenceReport]) -> list[str]:
    """What the table of captions does not say: why a figure is missing, how few there are, what was trained on."""
    first = reports[0]
    reasons = first.reasons if isinstance(first, ReferenceReport) else {}
    lines = [f"{metric} is no figure here: {reason}." for metric, reason in reasons.items()]
    shares = [r.intervals["in_style_and_true"] if isinstance(r, CaptionReport) else r.interval for r in reports]
    if known := [share for share in shares if share is not None]:
        lines += caution_lines(min(known, key=lambda share: share.groups))
    return [*lines, *seen_lines(reports)]


def caution_lines(interval: Interval) -> list[str]:
    """A sentence about what speaks against a verdict, if anything does."""
    return [f"{interval.caution[0].upper()}{interval.caution[1:]}."] if interval.few else []


Effects = Mapping[str, "SideEffects | None"]
"""What adapters, by name, do to other skills; None where that cannot be measured."""


def effect_lines(effects: Effects) -> list[tuple[str, bool]]:
    """What adapters do to other skills, and whether it is harm."""
    known = [(name, found) for name, found in effects.items() if found is not None]
    return [(f"{name}, {line}", found.harmful) for name, found in known for line in found.lines()]


def caption_lines(reports: Sequence[CaptionReport | ReferenceReport], differences: Mapping[str, Interval]) -> list[str]:
    """How adapters, by name, differ from the base."""
    what = "in style and true" if isinstance(reports[0], CaptionReport) else "exact match"
    return [f"{name} against base, {what}: {difference_text(found)}" for name, found in differences.items()]
