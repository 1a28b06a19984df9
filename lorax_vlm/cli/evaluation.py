"""``lorax-vlm evaluate``. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, captions_only, require_captions
from lorax_vlm.cli.checks import require_stored
from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    Annotations,
    AsJson,
    Columns,
    Data,
    Device,
    Dtype,
    GroupBy,
    HeldOut,
    Images,
    ImageTokens,
    IncludeSeen,
    Model,
    Quantize,
    SkipBadRows,
    Split,
    SplitChoice,
    Store,
    base_options,
    list_left_out,
    read_asked_data,
)
from lorax_vlm.cli.output import print_json, say, say_wrote
from lorax_vlm.cli.results import print_caption_reports, print_vqa_reports, say_side_effects
from lorax_vlm.data.world.captions import require_style
from lorax_vlm.data.world.examples import GENERAL, require_task
from lorax_vlm.data.world.questions import QUESTION_TYPES
from lorax_vlm.data.world.skills import kinds_taught
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.captions import style_on_scenes
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.summary import Effects, caption_lines, effect_lines
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.paths import require_new_file

if TYPE_CHECKING:
    from lorax_vlm.data.examples import DataSplits, Example
    from lorax_vlm.evaluation.opening import OpenedOnDemand


_SHOWN = 10
_USUAL_COUNT = 300


@dataclass(frozen=True)
class _Order:
    """What is to be measured, checked."""

    model: str
    names: dict[str, str]
    """As they were typed, and what they mean in the store, with the version where one is asked for."""
    task: str | None
    style: str | None
    count: int
    with_base: bool
    ablations: bool
    as_json: bool
    html: Path | None
    system: dict[str, Any]
    split: SplitChoice
    include_seen: bool
    splits: "DataSplits | None" = None
    skip_bad_rows: bool = False
    stored: list[StoredAdapter] = field(default_factory=list)


def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Adapters; by default all of this base that caption, or for questions the base alone."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Ask questions of this type: general, counting, reasoning, ...", show_default=False),
    ] = None,
    style: Annotated[str | None, typer.Option(help="Judge captions by this style.", show_default=False)] = None,
    data: Data = None,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    skip_bad_rows: SkipBadRows = False,
    split: Split = None,
    include_seen: IncludeSeen = False,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Number of test scenes, without --data; by default 300.", show_default=False),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base/--no-base", help="Measure the plain base too, and what adapters do to other skills.")
    ] = True,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Ask again with grey and with other images: does the image matter?")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write an HTML report.", show_default=False)] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    image_tokens: ImageTokens = None,
    as_json: AsJson = False,
) -> None:
    """Measure adapters beside the base on the same images.

    Adapters that answer questions: accuracy by type of question with intervals, and the difference to the base.
    Adapters that caption: form and content on held-out scenes, or with --data agreement with reference captions.
    With --data every row counts but those about images that one of the adapters was trained on.
    On a miniature also what an adapter does to skills that it was not trained for.
    """
    entry = get_model_entry(model)
    asked = _each_once(names or [], require_stored(store, names or [], entry))
    stored = [AdapterStore(store).get(name) for name in asked.values()]
    _check_options(entry, stored, task, style, data is not None)
    _check_amount(count, split, data is not None)
    page = require_new_file(html)
    options = base_options(store, device, dtype, quantize, image_tokens)
    splits = read_asked_data(
        data,
        images,
        annotations,
        columns,
        skip_bad_rows=skip_bad_rows,
        held_out=held_out,
        group_by=group_by,
        purpose="evaluate",
    )
    keep = include_seen or split == "train"  # whoever asks about those that were trained on means them
    order = _Order(
        model=model,
        names=asked,
        task=task,
        style=style,
        count=count or _USUAL_COUNT,
        with_base=base,
        ablations=ablations,
        as_json=as_json,
        html=page,
        system=options,
        split=split or "all",
        include_seen=keep,
        splits=splits,
        skip_bad_rows=skip_bad_rows,
        stored=stored,
    )
    if _asks_questions(entry, order):
        if not names and not base:
            raise UsageError("--no-base leaves nothing to measure: name adapters.")
        if style is not None:
            raise UsageError("--style judges captions; these adapters answer questions.")
        _evaluate_questions(order)
        return
    if ablations:
        raise UsageError("--ablations belongs to questions; these adapters caption.")
    _evaluate_captions(order, title=f"{entry.name}, {splits.source if splits else 'held-out scenes'}")


def _each_once(typed: Sequence[str], meant: Sequence[str]) -> dict[str, str]:
    """Each adapter once, however often and in whichever way it was named; under the first of its names."""
    first = dict(zip(reversed(meant), reversed(typed), strict=True))
    return {first[name]: name for name in dict.fromkeys(meant)}


def _check_options(
    entry: CatalogEntry, stored: Sequence[StoredAdapter], task: str | None, style: str | None, has_data: bool
) -> None:
    """What can be found out before data are read and torch is imported.

    Raises:
        UsageError: Options contradict each other or the adapters, or name what there is not.
    """
    if task and style:
        raise UsageError("Give --style to judge captions or --task to ask questions, not both.")
    if style:
        require_captions(entry)
    if has_data:
        if style:
            raise UsageError(
                "--style judges captions of drawn scenes; with --data they are compared with its captions."
            )
        return
    if not entry.miniature:
        raise UsageError(f"{entry.name} has no built-in test scenes. Give it yours: --data FOLDER.")
    if task is not None:
        require_task(task)
    elif style is not None:
        require_style(style)
    elif any(answers_questions(adapter.manifest) for adapter in stored):
        _require_questions(stored)
    elif entry.captions:
        for adapter in stored:
            style_on_scenes(adapter.name, adapter.manifest.skill_name)


def _check_amount(count: int | None, split: str | None, has_data: bool) -> None:
    """Raise ``UsageError`` for an option that says how much of what is not measured."""
    if count is not None and has_data:
        raise UsageError("--count is the number of drawn scenes; with --data all its rows count, or those of --split.")
    if split is not None and not has_data:
        raise UsageError("--split chooses among the examples of --data, which is not given.")


def _require_questions(stored: Sequence[StoredAdapter]) -> None:
    """Raise ``UsageError`` unless all adapters answer questions, of types that are asked about scenes."""
    captions = [adapter.name for adapter in stored if captions_only(adapter.manifest)]
    if captions:
        raise UsageError(
            f"Of these adapters {', '.join(captions)} caption, the others answer questions: evaluate them apart, or "
            "ask all of them questions with --task."
        )
    for adapter in stored:
        if _task_of(adapter) is None:
            raise UsageError(
                f"Adapter {adapter.name!r} is for {adapter.manifest.skill}, which is no type of question "
                "about drawn scenes. Ask it yours: --data FOLDER; or such a type: --task TYPE."
            )


def _task_of(adapter: StoredAdapter) -> str | None:
    """The type of question about scenes that an adapter is for; None where there is none."""
    kinds = kinds_taught(adapter.manifest.skill)
    kind = kinds[0] if len(kinds) == 1 else GENERAL
    return kind if kinds and kind in (*QUESTION_TYPES, GENERAL) else None


def _asks_questions(entry: CatalogEntry, order: _Order) -> bool:
    """Whether questions are asked, or captions wanted.

    Raises:
        UsageError: The data are of the other kind.
    """
    asked = order.task is not None or not entry.captions
    if order.splits is not None:
        has_questions = order.splits.kind == "questions"
        if asked and not has_questions:
            only = f"{entry.name} answers questions and cannot write captions."
            way = "Leave --task out." if entry.captions else only
            raise UsageError(f"{order.splits.source} holds captions, not questions. {way}")
        answering = [adapter.name for adapter in order.stored if answers_questions(adapter.manifest)]
        if answering and not has_questions:
            raise UsageError(f"{order.splits.source} holds captions, and {', '.join(answering)} answers questions.")
        captions = [adapter.name for adapter in order.stored if captions_only(adapter.manifest)]
        if has_questions and captions and order.task is None:
            raise UsageError(
                f"{order.splits.source} holds questions, and {', '.join(captions)} captions. Evaluate it on captions; "
                "--task WORD asks it all the same."
            )
        return has_questions
    return asked or (bool(order.stored) and answers_questions(order.stored[0].manifest))


def _evaluate_questions(order: _Order) -> None:
    from lorax_vlm.evaluation.questions import compare_reports
    from lorax_vlm.evaluation.summary import difference_lines
    from lorax_vlm.vqa import VQASystem

    if order.splits is not None:
        order = replace(order, splits=list_left_out(order.splits))
    system, model, splits = VQASystem(**order.system), order.model, order.splits
    tasks = {_task_of(adapter) for adapter in order.stored}
    asked = order.task or (tasks.pop() if len(tasks) == 1 else None) or GENERAL
    given: Sequence[Example] = list(splits.select(order.split)) if splits else system.test_questions(asked, order.count)
    source = splits.source if splits else f"scenes, {asked}, {order.count} held out"
    adapters: list[str | None] = [*([None] if order.with_base or not order.names else []), *order.names]
    unseen = system.unseen_examples([(model, name) for name in adapters], given, include_seen=order.include_seen)
    options: dict[str, Any] = {"source": source, "ablations": order.ablations, "include_seen": True}
    measured = [(name, system.evaluate(model, name, examples=unseen.examples, **options)) for name in adapters]
    reports = [replace(report, seen=unseen.of(order.names.get(name or ""))) for name, report in measured]
    compared = reports[1:] if order.with_base else []
    differences = {r.adapter: {m: compare_reports(reports[0], r, m) for m in r.by_metric} for r in compared}
    lines = [line for report in compared for line in difference_lines(report, differences[report.adapter])]
    title = f"{system.entry(model).name}: {source}"
    effects = {name: system.side_effects(model, name) for name in (order.names if order.with_base else [])}
    # What was measured is on the screen before a page is tried that may not be writable.
    if order.as_json:
        print_json(
            {
                "model": system.entry(model).name,
                "reports": reports,
                "differences": {name: found[reports[0].metric] for name, found in differences.items()},
                "differences_by_metric": differences,
                "side_effects": effects,
                "data": _about(order),
            }
        )
    else:
        for line in _about_in_short(order):
            say(line)
        print_vqa_reports(reports, lines, title)
        say_side_effects(effects)
    if order.html is not None:
        from lorax_vlm.evaluation.opening import OpenedOnDemand
        from lorax_vlm.reports.questions_page import write_vqa_page

        told: dict[str, Any] = {"title": title, "differences": lines, "notes": _notes(order, effects)}
        write_vqa_page(reports, OpenedOnDemand(unseen.examples), order.html, **told)
        say_wrote(order.html, as_json=order.as_json)
    if any(record.bug for report in reports for record in report.records):
        raise typer.Exit(1)


def _evaluate_captions(order: _Order, title: str) -> None:
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.evaluation.captions import against_base
    from lorax_vlm.workshop.fitting import require_fitting

    system = BLIP2CaptioningSystem(order.model, **order.system)
    if order.splits is not None:  # a reference that does not fit has no loss
        splits = order.splits.with_prompt(system.base.entry.caption_prompt)
        splits = require_fitting(system.base.family, splits, skip_bad_rows=order.skip_bad_rows)
        order = replace(order, splits=list_left_out(splits))
    names = [*order.names.values()] or None
    reports = system.evaluate_adapters(
        names,
        order.style,
        data=order.splits,
        count=order.count,
        with_base=order.with_base,
        split=order.split,
        include_seen=order.include_seen,
    )
    differences = against_base(reports)
    judged = dict.fromkeys(report.adapter for report in reports if report.adapter is not None)
    effects = {name: system.side_effects(name) for name in (judged if order.with_base else ())}
    left_out = [] if names or order.splits or order.style else system.own_styles()
    if order.as_json:
        print_json(
            {
                "model": system.entry.name,
                "reports": reports,
                "differences": differences,
                "side_effects": effects,
                "data": _about(order),
                "left_out": left_out,
            }
        )
    else:
        for line in _about_in_short(order):
            say(line)
        print_caption_reports(reports, differences, title)
        say_side_effects(effects)
        for name in left_out:
            say(f"{name} has a style of its own: give --data FOLDER")
    if order.html is not None:
        from lorax_vlm.reports.captions_page import write_captions_page

        lines, notes = caption_lines(reports, differences), _notes(order, effects)
        images = _images_of(order, reports)
        write_captions_page(reports, images, order.html, title=title, differences=lines, notes=notes)
        say_wrote(order.html, as_json=order.as_json)


def _images_of(order: _Order, reports: Sequence[CaptionReport | ReferenceReport]) -> "OpenedOnDemand":
    from lorax_vlm.data.world.examples import drawn_example
    from lorax_vlm.evaluation.opening import OpenedOnDemand

    if order.splits is not None:
        return OpenedOnDemand(list(order.splits.select(order.split)))
    return OpenedOnDemand([drawn_example(failure["scene"]) for report in reports for failure in report.failures])


def _about(order: _Order) -> list[str]:
    """What was read, and what of it was left out."""
    if order.splits is None:
        return []
    splits, validation, test = order.splits, len(order.splits.validation), len(order.splits.test)
    mixed = order.split in ("held-out", "all") and validation and test
    both = (
        f"asked about are {validation} validation examples, which training chooses its best step by, and {test} of test"
    )
    notes = [f"{both}; --split test asks about these alone"] if mixed else []
    return [splits.summary(), *notes, *splits.notes, *(f"left out: {row}" for row in splits.skipped)]


def _about_in_short(order: _Order) -> list[str]:
    """The same for people."""
    lines = _about(order)
    more = [f"and {len(lines) - _SHOWN} more lines; --json has all"] if len(lines) > _SHOWN else []
    return [*lines[:_SHOWN], *more]


def _notes(order: _Order, effects: Effects) -> list[str]:
    """What a page says beside the figures: the data, and other skills."""
    return [*_about_in_short(order), *(line for line, _ in effect_lines(effects))]
