"""``lorax-vlm train``."""

import sys
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
from lorax_vlm.cli.output import console, print_json

if TYPE_CHECKING:
    from lorax_vlm.adapters.store import StoredAdapter
    from lorax_vlm.data.examples import DataSplits


def train(
    name: Annotated[str, typer.Argument(help="Name of the adapter in the store.")],
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

    Killed at any moment, at most the steps since the last checkpoint are lost: run again with --resume.
    """
    import dataclasses

    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.vqa import VQASystem

    options: dict[str, Any] = {"store": store, "device": device, "dtype": dtype, "quantize": quantize}
    splits = read_asked_data(data, images, annotations, columns, streaming, skip_bad_rows)
    changes: dict[str, Any] = {
        "max_steps": steps,
        "batch_size": batch_size,
        "gradient_accumulation": accumulate,
        "learning_rate": learning_rate,
        "eval_every": eval_every,
        "patience": patience,
        "seed": seed,
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    common: dict[str, Any] = {"replace": replace, "resume": resume, "progress": not as_json}
    try:
        if task is not None:
            answering = VQASystem(**options)
            splits = answering.training_data(model, task, splits)
            _show(splits, quiet=as_json)
            config = dataclasses.replace(answering.default_config(model), **changes)
            stored = answering.train_adapter(
                model, name, task, data=splits, complexity=recipe or "heavy", config=config, **common
            )
            curve = answering.training_curve(model, name)
        else:
            captioning = BLIP2CaptioningSystem(model, **options)
            if style is None and name in captioning.store:
                style = captioning.store.get(name).manifest.style
            splits = captioning.training_data(style or "", splits)
            _show(splits, quiet=as_json)
            config = dataclasses.replace(captioning.default_config, **changes)
            stored = captioning.train_adapter(
                name, style, data=splits, complexity=recipe or "medium", config=config, **common
            )
            curve = captioning.training_curve(name)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Continue from the last checkpoint with --resume.\n")
        raise typer.Exit(130) from None
    if as_json:
        print_json(
            {"name": stored.name, "version": stored.version, "folder": stored.folder, "manifest": stored.manifest}
        )
        return
    _print_result(stored, curve)


def _show(splits: "DataSplits", *, quiet: bool) -> None:
    """What will be trained on, before it starts."""
    if not quiet:
        for line in splits.describe():
            console.print(line, highlight=False, markup=False)


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
