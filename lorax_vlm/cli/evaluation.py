"""``lorax-vlm evaluate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from lorax_vlm.errors import UsageError
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
    if as_json:
        print_json({"model": system.entry.name, "reports": reports})
        return
    _print_caption_reports(reports, title=str(data) if data else f"{system.entry.name}, held-out scenes")


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

    stored = [system.store.get(system.stored_name(model, name)) for name in names or []]
    asked = task or (stored[0].manifest.style if stored and splits is None else "general")
    examples: Sequence[Example] = list(splits.validation) if splits else system.test_questions(asked, count)
    source = splits.source if splits else f"scenes, {asked}, {count} held out"
    adapters: list[str | None] = [*([None] if with_base or not names else []), *(names or [])]
    reports = [system.evaluate(model, name, examples=examples, source=source, ablations=ablations) for name in adapters]
    differences = [(r, compare_reports(reports[0], r)) for r in reports[1:]] if with_base else []
    lines = [f"{r.adapter} against base: {_points(difference)}" for r, difference in differences]
    if html is not None:
        from lorax_vlm.evaluation.html import write_vqa_page

        pictures = {example.name: example.open_image() for example in examples[:60]}
        write_vqa_page(reports, pictures, html, title=f"{system.entry(model).name}: {source}", differences=lines)
    if as_json:
        compared = {r.adapter: difference for r, difference in differences}
        print_json({"model": system.entry(model).name, "reports": reports, "differences": compared})
        return
    _print_vqa_reports(reports, lines, title=f"{system.entry(model).name}: {source}")
    if html is not None:
        console.print(f"Wrote {html}", highlight=False)


def _points(difference: Interval) -> str:
    value, low, high = (100 * part for part in (difference.value, difference.low, difference.high))
    unsure = "; the interval includes no difference" if low <= 0 <= high else ""
    return f"{value:+.1f} points (95 %: {low:+.1f} to {high:+.1f}{unsure})"


def _print_vqa_reports(reports: Sequence[VQAReport], lines: Sequence[str], title: str) -> None:
    kinds = [kind for kind in reports[0].by_kind if kind != "all"]
    rows: list[tuple[object, ...]] = [("all", reports[0].count, *(_range(r.accuracy) for r in reports))]
    for kind in kinds:
        asked = sum(record.kind == kind for record in reports[0].records)
        rows.append((kind, asked, *(_range(report.by_kind[kind]) for report in reports)))
    rows.append(("time", "", *(f"{report.time_s:.1f} s" for report in reports)))
    print_table([reports[0].metric, "questions ", *(f"{r.adapter or 'base'} " for r in reports)], rows, title)
    for line in lines:
        console.print(line, highlight=False)
    ablated = [report for report in reports if report.blank is not None]
    if ablated:
        print_table(
            ["adapter", "own image ", "another's image ", "grey image "],
            [
                (r.adapter or "base", percent(r.accuracy.value), percent(r.shuffled or 0.0), percent(r.blank or 0.0))
                for r in ablated
            ],
            "Does the image matter?",
        )
    for report in ablated:
        if max(report.shuffled or 0.0, report.blank or 0.0) >= report.accuracy.low:
            console.print(
                f"[red]{report.adapter or 'base'} is as accurate without its image: it answers from the question.[/]"
            )
    failed = [record for record in reports[-1].records if record.error]
    if failed:
        console.print(f"{len(failed)} questions could not be asked and count as wrong; the first: {failed[0].error}")


def _range(interval: Interval) -> str:
    return f"{percent(interval.value)} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _print_caption_reports(reports: Sequence[CaptionReport | ReferenceReport], title: str) -> None:
    judged = [
        (
            report.style,
            report.adapter or "base",
            report.count,
            percent(report.in_style),
            percent(report.true),
            percent(report.in_style_and_true),
            f"{report.time_s:.1f} s",
        )
        for report in reports
        if isinstance(report, CaptionReport)
    ]
    if judged:
        print_table(["judged as", "adapter", "scenes ", "in style ", "true ", "both ", "time "], judged, title)
    compared = [
        (
            r.adapter or "base",
            r.count,
            percent(r.exact_match),
            f"{r.loss:.4f}",
            *(f"{value:.3f}" for value in r.text_metrics.values()),
            f"{r.time_s:.1f} s",
        )
        for r in reports
        if isinstance(r, ReferenceReport)
    ]
    if compared:
        metrics = list(dict.fromkeys(m for r in reports if isinstance(r, ReferenceReport) for m in r.text_metrics))
        columns = ["adapter", "captions ", "exact match ", "loss per token ", *(f"{m} " for m in metrics), "time "]
        print_table(columns, compared, title)
        if not metrics:
            console.print("CIDEr, BLEU-4 and ROUGE-L: pip install 'lorax-vlm[metrics]'", highlight=False)
