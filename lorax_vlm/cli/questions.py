"""``lorax-vlm ask`` and ``lorax-vlm benchmark``. No torch."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lorax_vlm.bulk.order import is_source
from lorax_vlm.cli.bulk import Manner, run_bulk
from lorax_vlm.cli.checks import require_images, require_stored
from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    AtATime,
    Columns,
    Device,
    Dtype,
    ImagesSomewhere,
    ImageTokens,
    IncludeSeen,
    Model,
    Quantize,
    Ray,
    Store,
    Workers,
    base_options,
    read_columns,
)
from lorax_vlm.cli.output import SILENT, print_json, print_table, say, say_drawn_only
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.results import BenchmarkRow
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.types import percent


def ask(
    context: typer.Context,
    image: Annotated[
        str, typer.Argument(help="Path or http(s) URL; or rows with questions: a file or hub:owner/name.")
    ],
    questions: Annotated[
        list[str] | None, typer.Argument(help="One or more questions about it.", show_default=False)
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="Adapter to use; repeat to compare.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Of rows: a .jsonl, .csv or .parquet file or a folder, perhaps by its address (s3://). Default: here.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(help="Of rows: jsonl, csv, parquet; several by commas. Default: jsonl.", show_default=False),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of hub:owner/name: one split.", show_default=False)] = None,
    images: ImagesSomewhere = None,
    columns: Columns = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of rows: say what would be done.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Of rows: exit code 1 if one failed.")] = False,
    json_progress: Annotated[bool, typer.Option("--json-progress", help="Of rows: in JSON lines.")] = False,
    batch_size: AtATime = None,
    ray: Ray = None,
    workers: Workers = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search width.", show_default=False)] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    image_tokens: ImageTokens = None,
    as_json: AsJson = False,
) -> None:
    """Answer questions about an image with the base, or with adapters side by side; or all questions of a table.

    Of rows (.jsonl, .csv, .parquet, .json or hub:owner/name: an image, a question, whatever else) each is answered by
    each adapter, and the same command goes on where it ended; what failed is listed beside the answers.
    """
    entry, options = get_model_entry(model), base_options(store, device, dtype, quantize, image_tokens)
    if out is not None or not questions:
        if questions or not is_source(image):
            raise UsageError("Give an image and questions about it, or rows with questions: a table or hub:owner/name.")
        of_table: dict[str, Any] = {
            "dry_run": dry_run,
            "strict": strict,
            "json_progress": json_progress,
            "batch_size": batch_size,
            "ray": ray,
            "workers": workers,
        }
        manner = Manner(options, as_json=as_json, **{name: value for name, value in of_table.items() if value})
        of_rows = {"images": images, "split": split, "columns": read_columns(columns) if columns else None, "out": out}
        wishes: dict[str, Any] = {name: value for name, value in of_rows.items() if value is not None}
        if beams is not None:
            wishes["decoding"] = {"num_beams": beams}
        if write is not None:
            wishes["write"] = [kind.strip() for kind in write.split(",")]
        run_bulk(context, image, adapter or [], model, {**wishes, "answers": True}, manner)
        return
    if beams is not None and not entry.captions:
        raise UsageError(f"--beams is for models that write; {entry.name} chooses among fixed answers.")
    require_images([image])
    require_stored(store, adapter or [], entry)
    from lorax_vlm.vqa import VQASystem

    system = VQASystem(**options)
    changes: dict[str, Any] = {"num_beams": beams} if beams is not None else {}
    names: list[str | None] = [*adapter] if adapter else [None]
    if len(names) > 1:
        names = [None, *names]
    # One mixed batch: the image is encoded once for all.
    rows = [(name, question) for name in names for question in questions]
    said = system.answer_questions(
        [image] * len(rows), [question for _, question in rows], model, [name for name, _ in rows], **changes
    )
    answers = {
        name or "base": said[index * len(questions) : (index + 1) * len(questions)] for index, name in enumerate(names)
    }
    if as_json:
        print_json({"model": system.entry(model).name, "questions": questions, "answers": answers})
    elif len(questions) == 1 and len(answers) == 1:
        say(str(next(iter(answers.values()))[0]) or SILENT)
    else:
        table = [(question, *(str(g[i]) or SILENT for g in answers.values())) for i, question in enumerate(questions)]
        print_table(["question", *answers], table, title=image)
    if entry.miniature and not as_json:
        say_drawn_only(entry.name, [image])


def benchmark(
    models: Annotated[
        list[str] | None, typer.Argument(help="Keys, catalogue names, hub ids or folders.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of test scenes.")] = 100,
    alone: Annotated[int, typer.Option(min=1, help="Questions asked one by one, for the latency.")] = 20,
    include_seen: IncludeSeen = False,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare models and their stored adapters on questions about drawn scenes: accuracy, time, memory.

    By default the four miniatures. Real checkpoints can be timed this way; their accuracy on drawn scenes says little.
    """
    from lorax_vlm.models.catalog import MINIATURE_KEYS
    from lorax_vlm.vqa import VQASystem

    system = VQASystem(store=store, device=device, dtype=dtype, quantize=quantize)
    examples = system.test_questions("general", count)
    rows = system.benchmark_models(
        [example.open_image() for example in examples],
        [example.question for example in examples],
        answers=[example.target for example in examples],
        kinds=[example.kind for example in examples],
        models=models or list(MINIATURE_KEYS.values()),
        alone=alone,
        include_seen=include_seen,
    )
    if as_json:
        print_json({"questions": count, "rows": rows})
        return
    print_benchmark(rows, title=f"{count} questions about held-out scenes")
    for row in rows:
        if row.seen is not None:
            say(row.seen.line())


def _accuracy(row: BenchmarkRow) -> str:
    if row.accuracy is None:
        return "?"
    return row.interval.percent() if row.interval else percent(row.accuracy)


def print_benchmark(rows: Sequence[BenchmarkRow], title: str) -> None:
    """Quality and cost, one line per model and adapter."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.by_kind))
    print_table(
        ["model", "adapter", "all ", *(f"{kind} " for kind in kinds)],
        [
            (
                row.model,
                row.adapter or "-",
                _accuracy(row),
                *(percent(row.by_kind[kind]) if kind in row.by_kind else "-" for kind in kinds),
            )
            for row in rows
        ],
        title=title,
    )
    print_table(
        ["model", "adapter", "p50 ", "p95 ", "questions/s ", "tokens/s ", "peak memory "],
        [
            (
                row.model,
                row.adapter or "-",
                f"{1000 * row.latency_p50_s:.0f} ms",
                f"{1000 * row.latency_p95_s:.0f} ms",
                f"{row.questions_per_s:.1f}",
                f"{row.tokens_per_s:.1f}",
                f"{row.peak_bytes / 1e9:.2f} GB",
            )
            for row in rows
        ],
        title="time of one question alone, throughput in batches",
    )
    for row in rows:
        if row.failed:
            who = f"{row.model}, {row.adapter or 'base'}"
            say(f"{who}: {row.failed} questions could not be asked and count as wrong; the first: {row.first_failure}")
