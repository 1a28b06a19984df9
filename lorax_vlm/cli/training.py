"""``lorax-vlm train``."""

import sys
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
    Streaming,
    read_asked_data,
)
from lorax_vlm.cli.order_file import AskedAdapter, ask, read_order_file
from lorax_vlm.cli.output import console, print_json
from lorax_vlm.errors import UsageError
from lorax_vlm.settings import process_rank

if TYPE_CHECKING:
    from lorax_vlm.adapters.store import StoredAdapter
    from lorax_vlm.data.examples import DataSplits


def train(
    name: Annotated[str | None, typer.Argument(help="Name of the adapter in the store.", show_default=False)] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            help="Train several in one run instead: a YAML file, NAME: {style: detailed} or NAME: {task: counting}. "
            "Other options are for those that say nothing else.",
            show_default=False,
        ),
    ] = None,
    style: Annotated[
        str | None, typer.Option(help="plain, detailed, concise or creative; with --data any word.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Answer questions instead: general, counting, reasoning, ...; with --data any word.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    streaming: Streaming = False,
    model: Model = DEFAULT_MODEL,
    recipe: Annotated[
        str | None,
        typer.Option(help="light (rank 4), medium (8; for styles) or heavy (16; for tasks).", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows per forward pass.", show_default=False)] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Forward passes per step.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate.", show_default=False)] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between validations; each is a checkpoint.", show_default=False)
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many validations without gain.", show_default=False)
    ] = None,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Compute in bfloat16 on a base of float32.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Order of examples, initial weights.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run of this name.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version of a trained adapter.")] = False,
    skip_bad_rows: SkipBadRows = False,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Train an adapter and store it: a caption style, or with --task a skill of answering questions.

    With --adapters several at once: each is what it would be alone, in a fraction of the time.

    Killed at any moment, at most the steps since the last checkpoint are lost: run again with --resume.
    """
    options = {
        "style": style,
        "task": task,
        "recipe": recipe,
        "data": data,
        "images": images,
        "annotations": annotations,
        "columns": columns,
        "streaming": streaming or None,
        "skip_bad_rows": skip_bad_rows or None,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "eval_every": eval_every,
        "patience": patience,
        "seed": seed,
        "mixed_precision": mixed_precision or None,
        "gradient_checkpointing": gradient_checkpointing or None,
    }
    if (name is None) == (adapters is None):
        raise UsageError("Name one adapter to train, or several in a file: --adapters FILE.")
    if adapters is not None and (style or task):
        raise UsageError("With --adapters, style and task are those of each entry of the file.")
    asked = read_order_file(adapters, options) if adapters is not None else [ask(str(name), options)]
    system: dict[str, Any] = {"store": store, "device": device, "dtype": dtype, "quantize": quantize}
    try:
        quiet = as_json or process_rank() > 0
        kept = _train(asked, model, system, resume=resume, replace=replace, quiet=quiet)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Continue from the last checkpoint with --resume.\n")
        raise typer.Exit(130) from None
    if process_rank() > 0:  # of several processes the first speaks
        return
    if as_json:
        records = [
            {"name": stored.name, "version": stored.version, "folder": stored.folder, "manifest": stored.manifest}
            for stored, _ in kept
        ]
        print_json({"adapters": records} if adapters is not None else records[0])
        return
    for stored, curve in kept:
        _print_result(stored, curve)


def _train(
    asked: Sequence[AskedAdapter],
    model: str,
    system: dict[str, Any],
    *,
    resume: bool,
    replace: bool,
    quiet: bool,
) -> "list[tuple[StoredAdapter, Path]]":
    """Train what is asked for, in one run; the stored adapters with their training curves."""
    import dataclasses

    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.vqa import VQASystem

    answering, orders = VQASystem(**system), []
    captioning = BLIP2CaptioningSystem(model, **system) if any(not adapter.task for adapter in asked) else None
    for adapter in asked:
        splits = read_asked_data(**adapter.data)
        if adapter.task or captioning is None:
            config = dataclasses.replace(answering.default_config(model), **adapter.config)
            recipe = adapter.recipe or "heavy"
            order = answering.order(model, adapter.name, adapter.task, data=splits, complexity=recipe, config=config)
        else:
            config = dataclasses.replace(captioning.default_config, **adapter.config)
            recipe = adapter.recipe or "medium"
            order = captioning.order(adapter.name, adapter.style, data=splits, complexity=recipe, config=config)
        if not quiet:
            _show(adapter.name if len(asked) > 1 else "", order.splits)
        orders.append(order)
    eval_every = min(order.config.eval_every for order in orders)  # a joint run validates all at the same steps
    orders = [dataclasses.replace(o, config=dataclasses.replace(o.config, eval_every=eval_every)) for o in orders]
    kept = answering.train_orders(model, orders, replace=replace, resume=resume, progress=not quiet)
    return [(stored, answering.training_curve(model, stored.name)) for stored in kept]


def _show(name: str, splits: "DataSplits") -> None:
    """What will be trained on, before it starts."""
    for line in splits.describe():
        console.print(f"{name}: {line}" if name else line, highlight=False, markup=False)


def _print_result(stored: "StoredAdapter", curve: Path) -> None:
    training = stored.manifest.training
    sites = ", ".join(f"{count} {component} layers" for component, count in stored.manifest.sites.items())
    console.print(
        f"{stored.name}: {training['data']}\n"
        f"  adapted  {sites}, rank {stored.manifest.rank}, {training['trainable_parameters']:,} parameters\n"
        f"  loss     {training['first_validation_loss']:.4f} -> {training['best_validation_loss']:.4f} on validation, "
        f"{training['steps']} steps in {training['time_s']:.0f} s\n"
        f"  curve    {curve}\n"
        f"  stored   {stored.folder}",
        highlight=False,
        soft_wrap=True,
    )
