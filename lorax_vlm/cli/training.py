"""``lorax-vlm train``."""

import sys
from typing import Annotated, Any

import typer

from lorax_vlm.cli.options import DEFAULT_MODEL, AsJson, Data, Device, Dtype, Model, Quantize, Store
from lorax_vlm.cli.output import console, print_json


def train(
    name: Annotated[str, typer.Argument(help="Name of the adapter in the store.")],
    style: Annotated[
        str | None, typer.Option(help="plain, detailed, concise or creative; with --data any word.", show_default=False)
    ] = None,
    data: Data = None,
    model: Model = DEFAULT_MODEL,
    recipe: Annotated[str, typer.Option(help="light (rank 4), medium (8) or heavy (16).")] = "medium",
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
    skip_bad_rows: Annotated[bool, typer.Option("--skip-bad-rows", help="Leave malformed rows out.")] = False,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a captioning adapter and store it.

    Killed at any moment, at most the steps since the last checkpoint are lost: run again with --resume.
    """
    import dataclasses

    from lorax_vlm.captioning import BLIP2CaptioningSystem

    system = BLIP2CaptioningSystem(model, store=store, device=device, dtype=dtype, quantize=quantize)
    changes: dict[str, Any] = {
        "max_steps": steps,
        "batch_size": batch_size,
        "gradient_accumulation": accumulate,
        "learning_rate": learning_rate,
        "eval_every": eval_every,
        "patience": patience,
        "seed": seed,
    }
    config = dataclasses.replace(
        system.default_config, **{field: value for field, value in changes.items() if value is not None}
    )
    try:
        stored = system.train_adapter(
            name,
            style,
            data=data,
            complexity=recipe,
            config=config,
            replace=replace,
            resume=resume,
            skip_bad_rows=skip_bad_rows,
            progress=not as_json,
        )
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Continue from the last checkpoint with --resume.\n")
        raise typer.Exit(130) from None
    training = stored.manifest.training
    if as_json:
        print_json({"name": name, "version": stored.version, "folder": stored.folder, "manifest": stored.manifest})
        return
    sites = ", ".join(f"{count} {component} layers" for component, count in stored.manifest.sites.items())
    console.print(
        f"{name}: {training['data']}\n"
        f"  adapted  {sites}, rank {stored.manifest.rank}, {training['trainable_parameters']:,} parameters\n"
        f"  loss     {training['first_validation_loss']:.4f} -> {training['best_validation_loss']:.4f} on validation, "
        f"{training['steps']} steps in {training['time_s']:.0f} s\n"
        f"  curve    {system.training_curve(name)}\n"
        f"  stored   {stored.folder}",
        highlight=False,
        soft_wrap=True,
    )
