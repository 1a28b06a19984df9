"""``lorax-vlm evaluate``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    Annotations,
    AsJson,
    Columns,
    Data,
    Device,
    Dtype,
    Images,
    Model,
    Quantize,
    SkipBadRows,
    Store,
    read_asked_data,
)
from lorax_vlm.cli.output import console, percent, print_json, print_table
from lorax_vlm.errors import PathError, UsageError
from lorax_vlm.types import CaptionReport, Interval, ReferenceReport, VQAReport

if TYPE_CHECKING:
    from lorax_vlm.data.examples import DataSplits, Example
    from lorax_vlm.vqa import VQASystem


def evaluate(
    names: Annotated[list[str] | None, typer.Argument(help="Adapters; by default all of this base.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Ask questions of this type: general, counting, reasoning, ...", show_default=False),
    ] = None,
    style: Annotated[str | None, typer.Option(help="Judge captions by this style.", show_default=False)] = None,
    data: Data = None,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    skip_bad_rows: SkipBadRows = False,
    count: Annotated[int, typer.Option(min=1, help="Number of test scenes.")] = 300,
    base: Annotated[bool, typer.Option("--base/--no-base", help="Measure the plain base too.")] = True,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Ask again with grey and with shuffled images: does the image matter?")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report of answers.", show_default=False)] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure adapters beside the base on the same images.

    Adapters that answer questions: accuracy by type of question with intervals, and the difference to the base.
    Adapters that caption: form and content on held-out scenes, or with --data agreement with reference captions.
    """
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.vqa import VQASystem

    if html is not None:
        _require_writable(html)
    options: dict[str, Any] = {"store": store, "device": device, "dtype": dtype, "quantize": quantize}
    splits = read_asked_data(data, images, annotations, columns, skip_bad_rows=skip_bad_rows)
    answering = VQASystem(**options)
    if _asks_questions(answering, model, names, task, splits):
        _evaluate_questions(answering, model, names, task, splits, count, base, ablations, html, as_json)
        return
    if html is not None or ablations:
        raise UsageError("--html and --ablations belong to questions; these adapters caption.")
    system = BLIP2CaptioningSystem(model, **options)
    reports = system.evaluate_adapters(names or None, style, data=splits, count=count, with_base=base)
    differences = _against_base(reports)
    if as_json:
        print_json({"model": system.entry.name, "reports": reports, "differences": differences})
        return
    _print_caption_reports(reports, differences, title=str(data) if data else f"{system.entry.name}, held-out scenes")


def _asks_questions(
    system: "VQASystem", model: str, names: Sequence[str] | None, task: str | None, splits: "DataSplits | None"
) -> bool:
    if task is not None or not system.entry(model).captions:
        return True
    if splits is not None:
        return bool(splits.validation[0].question)
    return bool(names) and all(
        system.store.get(system.stored_name(model, name)).manifest.task == "vqa" for name in names or []
    )


def _evaluate_questions(
    system: "VQASystem",
    model: str,
    names: Sequence[str] | None,
    task: str | None,
    splits: "DataSplits | None",
    count: int,
    with_base: bool,
    ablations: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    from lorax_vlm.evaluation.questions import compare_reports
    from lorax_vlm.evaluation.summary import difference_lines

    stored = [system.store.get(system.stored_name(model, name)) for name in names or []]
    asked = task or (stored[0].manifest.style if stored and splits is None else "general")
    examples: Sequence[Example] = list(splits.validation) if splits else system.test_questions(asked, count)
    source = splits.source if splits else f"scenes, {asked}, {count} held out"
    adapters: list[str | None] = [*([None] if with_base or not names else []), *(names or [])]
    reports = [system.evaluate(model, name, examples=examples, source=source, ablations=ablations) for name in adapters]
    compared = reports[1:] if with_base else []
    differences = {r.adapter: {m: compare_reports(reports[0], r, m) for m in r.by_metric} for r in compared}
    lines = [line for report in compared for line in difference_lines(report, differences[report.adapter])]
    title = f"{system.entry(model).name}: {source}"
    # What was measured is on the screen before a page is tried that may not be writable.
    if as_json:
        print_json(
            {
                "model": system.entry(model).name,
                "reports": reports,
                "differences": {name: found[reports[0].metric] for name, found in differences.items()},
                "differences_by_metric": differences,
            }
        )
    else:
        _print_vqa_reports(reports, lines, title)
    if html is not None:
        from lorax_vlm.evaluation.html import write_vqa_page
        from lorax_vlm.evaluation.opening import OpenedOnDemand

        write_vqa_page(reports, OpenedOnDemand(examples), html, title=title, differences=lines)
        if not as_json:
            _say(f"Wrote {html}")


def _require_writable(path: Path) -> None:
    """Whether a page could be written, before anything is measured.

    Raises:
        PathError: It is a folder, or lies where nothing can be written.
    """
    if path.is_dir():
        raise PathError(str(path), "is a folder", "Name a file in it.")
    place = next(parent for parent in path.absolute().parents if parent.exists())
    if not place.is_dir():
        raise PathError(str(path), f"{place} is not a folder")
    if not os.access(path if path.exists() else place, os.W_OK):
        raise PathError(str(path), "it cannot be written")


def _say(line: str, style: str = "") -> None:
    console.print(Text(line, style=style))


def _print_vqa_reports(reports: Sequence[VQAReport], lines: Sequence[str], title: str) -> None:
    from lorax_vlm.evaluation.summary import image_line, metrics_line, missing_line, name_of, table_rows

    first = reports[0]
    rows: list[tuple[object, ...]] = [
        (name, shares[0].count, *(_range(share) for share in shares)) for name, shares in table_rows(reports)
    ]
    rows.append(("time", "", *(f"{report.time_s:.1f} s" for report in reports)))
    heading = first.metric if len(first.by_metric) < 2 else "accuracy"
    print_table([heading, "questions ", *(f"{name_of(report)} " for report in reports)], rows, title)
    if several := metrics_line(first):
        _say(several)
    if first.accuracy.few:
        _say(f"{first.accuracy.caution[0].upper()}{first.accuracy.caution[1:]}.")
    for line in lines:
        _say(line)
    ablated = [report for report in reports if report.image_effect is not None]
    if ablated:
        print_table(
            ["adapter", "own image ", "another's image ", "grey image "],
            [(name_of(r), percent(r.accuracy.value), _share(r.shuffled), _share(r.blank)) for r in ablated],
            "Does the image matter?",
        )
    for report in ablated:
        ignored = report.image_effect is not None and report.image_effect.verdict == "ignored"
        _say(image_line(report), style="red" if ignored else "")
    if missing := missing_line(ablated):
        _say(missing)
    failed = [record for record in reports[-1].records if record.error]
    if failed:
        _say(f"{len(failed)} questions could not be asked and count as wrong; the first: {failed[0].error}")


def _share(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _range(interval: Interval) -> str:
    return f"{percent(interval.value)} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


CaptionReports = Sequence[CaptionReport | ReferenceReport]


def _against_base(reports: CaptionReports) -> dict[str, Interval]:
    """How each adapter differs from the base on the same images, judged in the same way; empty without the base."""
    from lorax_vlm.evaluation.captions import compare_captions

    bases = {getattr(r, "style", None): r for r in reports if r.adapter is None}
    return {
        report.adapter: compare_captions(bases[getattr(report, "style", None)], report)
        for report in reports
        if report.adapter is not None and getattr(report, "style", None) in bases
    }


def _print_caption_reports(reports: CaptionReports, differences: Mapping[str, Interval], title: str) -> None:
    from lorax_vlm.evaluation.summary import difference_text

    judged = [report for report in reports if isinstance(report, CaptionReport)]
    compared = [report for report in reports if isinstance(report, ReferenceReport)]
    if judged:
        print_table(
            ["judged as", "adapter", "scenes ", "in style ", "true ", "both ", "time "],
            [
                (
                    r.style,
                    r.adapter or "base",
                    r.count,
                    percent(r.in_style),
                    percent(r.true),
                    _range(r.intervals["in_style_and_true"]),
                    f"{r.time_s:.1f} s",
                )
                for r in judged
            ],
            title,
        )
    if compared:
        _print_references(compared, title)
    shares = [r.intervals["in_style_and_true"] for r in judged] + [r.interval for r in compared if r.interval]
    few = next((share.caution for share in shares if share.few), "")
    if few:
        _say(f"{few[0].upper()}{few[1:]}.")
    for name, difference in differences.items():
        what = "in style and true" if judged else "exact match"
        _say(f"{name} against base, {what}: {difference_text(difference)}")


def _print_references(reports: Sequence[ReferenceReport], title: str) -> None:
    metrics = list(dict.fromkeys(metric for report in reports for metric in report.text_metrics))
    print_table(
        ["adapter", "captions ", "exact match ", "loss per token ", *(f"{metric} " for metric in metrics), "time "],
        [
            (
                r.adapter or "base",
                r.count,
                _range(r.interval) if r.interval else percent(r.exact_match),
                _figure(r.loss, 4) if r.loss is not None else "not finite",
                *(_figure(r.text_metrics.get(metric), 3) for metric in metrics),
                f"{r.time_s:.1f} s",
            )
            for r in reports
        ],
        title,
    )
    if not metrics:
        _say("CIDEr, BLEU-4 and ROUGE-L: pip install 'lorax-vlm[metrics]'")
    elif any(r.text_metrics.get("CIDEr") is None for r in reports):
        _say(f"CIDEr needs several images: of {reports[0].count} it is no figure.")


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
