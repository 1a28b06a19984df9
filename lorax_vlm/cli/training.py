"""``lorax-vlm train``. No torch."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.recipe import Recipe, change_recipe, get_recipe, require_sites
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.asking import require_captions
from lorax_vlm.cli.checks import require_free_names, require_kind
from lorax_vlm.cli.interrupts import told_of
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
    Model,
    Quantize,
    SkipBadRows,
    Store,
    Streaming,
    base_options,
    read_asked_data,
    require_no_data_options,
)
from lorax_vlm.cli.order_file import AskedAdapter, ask, read_order_file
from lorax_vlm.cli.output import print_json, say
from lorax_vlm.cli.recording import recording
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.settings import process_rank
from lorax_vlm.skills import Skill, answer, caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.defaults import skill_recipe, span
from lorax_vlm.training.runs import REJECTED_FOLDER

if TYPE_CHECKING:
    from lorax_vlm.adapters.stored import StoredAdapter
    from lorax_vlm.data.examples import DataSplits
    from lorax_vlm.evaluation.side_effects import SideEffects
    from lorax_vlm.training.probe import ProbeReport
    from lorax_vlm.workshop.orders import AdapterOrder
    from lorax_vlm.workspace import Workspace


class Trained(NamedTuple):
    """A stored adapter, and what is known of its training."""

    stored: "StoredAdapter"
    curve: Path
    effects: "SideEffects | None"
    """What it does to other skills."""
    limit: "ProbeReport | None"
    """What the image path hands on, where training stalled."""


def train(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Name of the adapter in the store.", show_default=False)] = None,
    adapters: Annotated[
        Path | None,
        typer.Option(
            help="Train several in one run instead: a YAML file, NAME: {style: detailed} or NAME: {task: counting}. "
            "Command-line options are defaults for entries that do not set them.",
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
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    model: Model = DEFAULT_MODEL,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="light (rank 4), medium (8), heavy (16), seeing (16, with the image path) or portable (8). Default: "
            "medium for styles, heavy for tasks; for tasks of a miniature with --data seeing (vilt-mini: heavy).",
            show_default=False,
        ),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(help="An adapter to train on from; its recipe is the usual one then.", show_default=False),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.", show_default=False)] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Updates count alpha / rank. Default: twice the rank.", show_default=False)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="On the adapter's inputs while training. Default: 0.", show_default=False)
    ] = None,
    sites: Annotated[
        list[str] | None,
        typer.Option(
            help="What is adapted: lm, lm-qv, lm-attention, lm-mlp, projection, qformer, vision; repeat, or part with "
            "commas. Default: the recipe's.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Optimiser steps. Default: 500; of miniatures {span('max_steps')} by family, with --data "
            f"{span('max_steps', own_data=True)}.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Rows per forward pass. Default: 8; of miniatures {span('batch_size')}.", show_default=False
        ),
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Forward passes per step. Default: 1.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help=f"Peak rate. Default: 0.0002; of miniatures {span('learning_rate')}.", show_default=False),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between validations; each is a checkpoint. Default: 50, or more.", show_default=False
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop after so many validations without gain. Default: 5; of miniatures "
            f"{span('patience', own_data=True)} with --data, else never.",
            show_default=False,
        ),
    ] = None,
    mixed_precision: Annotated[
        bool, typer.Option("--mixed-precision", help="Compute in bfloat16 on a base of float32.")
    ] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, more time.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="Send the losses to a tracker, too: tensorboard, wandb, trackio, ...", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=0, help="Print what it says of so many validation examples at each validation.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Order of examples, initial weights. Default: 0.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run of this name.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Make a new version of a trained adapter.")] = False,
    skip_bad_rows: SkipBadRows = False,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    image_tokens: ImageTokens = None,
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
        "init_from": init_from,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "sites": sites,
        "data": data,
        "images": images,
        "annotations": annotations,
        "columns": columns,
        "streaming": streaming or None,
        "held_out": held_out,
        "group_by": group_by,
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
        "report_to": report_to or None,
        "samples": samples,
    }
    if (name is None) == (adapters is None):
        raise UsageError("Name one adapter to train, or several in a file: --adapters FILE.")
    if adapters is not None and init_from is not None:
        raise UsageError("--init-from is for one adapter; those of a file are trained together.")
    if adapters is not None and (style or task):
        raise UsageError("With --adapters, style and task are those of each entry of the file.")
    asked = read_order_file(adapters, options) if adapters is not None else [ask(str(name), options)]
    entry = get_model_entry(model)
    _check(asked, entry, store, taken=replace or resume)
    system = base_options(store, device, dtype, quantize, image_tokens)
    try:
        quiet = as_json or process_rank() > 0
        about = ", ".join(f"{entry.name}.{each.name}" if each.task else each.name for each in asked)
        with told_of((signal.SIGTERM,), signal.default_int_handler), recording(context, about, ("resume", "replace")):
            kept = _train(asked, model, system, resume=resume, replace=replace, quiet=quiet)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. Continue from the last checkpoint with --resume.\n")
        raise typer.Exit(130) from None
    if process_rank() > 0:  # of several processes the first speaks
        return
    if as_json:
        records = [
            {
                "name": trained.stored.name,
                "version": trained.stored.version,
                "folder": trained.stored.folder,
                "manifest": trained.stored.manifest.record(),
                "side_effects": trained.effects,
                "image_path": trained.limit,
            }
            for trained in kept
        ]
        print_json({"adapters": records} if adapters is not None else records[0])
        return
    for trained in kept:
        _print_result(trained, model)


def _check(asked: Sequence[AskedAdapter], entry: CatalogEntry, store: Path | None, *, taken: bool) -> None:
    """What can be found out before torch is imported and data are read.

    Args:
        asked: What is to be trained.
        entry: The base.
        store: Where it goes.
        taken: Names may be taken: by what is replaced, or by what an interrupted run has stored.
    """
    known = AdapterStore(store)
    for adapter in asked:
        require_adapter_name(adapter.name)
        if not _has_own_data(adapter):
            require_no_data_options(**adapter.data)
        style = adapter.style
        if not style and not adapter.task and adapter.name in known:
            style = known.get(adapter.name).manifest.skill_name
        require_kind(entry, style, adapter.task, adapter.recipe, _has_own_data(adapter))
        if not adapter.task:
            require_captions(entry)
        recipe = _recipe(adapter, entry)
        TrainConfig(**adapter.config)  # what is changed of the usual one
        if entry.family:
            require_sites(recipe, entry.family)
    require_free_names(known, [(a.name, a.task is not None) for a in asked], entry, taken=taken)


def _recipe(adapter: AskedAdapter, entry: CatalogEntry) -> Recipe:
    skill = answer(adapter.task) if adapter.task else caption(adapter.style or "")
    usual = skill_recipe(entry, skill, own_data=_has_own_data(adapter))
    return change_recipe(get_recipe(adapter.recipe or usual), **adapter.changes)


def _has_own_data(adapter: AskedAdapter) -> bool:
    return "data" in adapter.data


def _train(
    asked: Sequence[AskedAdapter],
    model: str,
    system: dict[str, Any],
    *,
    resume: bool,
    replace: bool,
    quiet: bool,
) -> list[Trained]:
    """Train what is asked for, in one run."""
    own = [read_asked_data(**adapter.data) for adapter in asked]  # before torch is imported
    from lorax_vlm.workspace import Workspace

    workspace, orders = Workspace(**system), []
    for adapter, splits in zip(asked, own, strict=True):
        entry = workspace.bases.described(model)
        name, skill = _name_and_skill(adapter, entry, workspace.store)
        order = workspace.workshop(model).order(
            name,
            skill,
            data=splits,
            recipe=change_recipe(get_recipe(adapter.recipe), **adapter.changes) if adapter.recipe else adapter.changes,
            init_from=adapter.init_from,
            config=adapter.config,
            skip_bad_rows=bool(adapter.data.get("skip_bad_rows")),
        )
        if not quiet:
            _show(adapter.name if len(asked) > 1 else "", order.splits)
        orders.append(order)
    kept = workspace.train_orders(model, orders, replace=replace, resume=resume, progress=not quiet)
    return [_look_back(workspace, model, stored, order) for stored, order in zip(kept, orders, strict=True)]


def _name_and_skill(adapter: AskedAdapter, entry: "CatalogEntry", store: AdapterStore) -> "tuple[str, Skill]":
    """What it is called in the store, and what it is for."""
    if adapter.task:
        return f"{entry.name}.{adapter.name}", answer(adapter.task)
    require_captions(entry)
    known = store.get(adapter.name).manifest.skill_name if adapter.name in store else ""
    return adapter.name, caption(adapter.style or known)


def _look_back(workspace: "Workspace", model: str, stored: "StoredAdapter", order: "AdapterOrder") -> Trained:
    from lorax_vlm.measuring.effects import image_limit, side_effects

    curve = workspace.workshop(model).training_curve(stored.name)
    if process_rank() > 0:
        return Trained(stored, curve, None, None)
    with workspace.bases.use(model) as engine:
        return Trained(stored, curve, side_effects(engine, stored), image_limit(engine, stored, order.splits))


def _show(name: str, splits: "DataSplits") -> None:
    """What will be trained on, before it starts."""
    for line in splits.describe():
        say(f"{name}: {line}" if name else line)


def _print_result(trained: Trained, model: str) -> None:
    stored, curve, effects, limit = trained
    manifest, training = stored.manifest, stored.manifest.training
    sites = ", ".join(f"{count} {component} layers" for component, count in manifest.sites.items())
    say(f"{stored.name}, version {stored.version}")
    say(f"  adapted  {sites}, rank {manifest.rank}, {training['trainable_parameters']:,} parameters")
    say(
        f"  loss     {training['first_validation_loss']:.4f} -> {training['best_validation_loss']:.4f} on validation, "
        f"{training['steps']} steps in {training['time_s']:.0f} s, the best at step {training['best_step']}"
    )
    if manifest.no_better:
        first = manifest.begun_with
        reason = (
            f"no better than {first}: no step has a lower validation loss, so the adapter was left as it began, like "
            "that one."
            if first is not None
            else "no better than the base: no step has a lower validation loss than the base alone, so the adapter was "
            "left as it began and changes nothing."
        )
        say(f"  {reason}\n  What was trained and not chosen: {curve.parent / REJECTED_FOLDER}", style="red")
    if limit is not None and limit.limits:
        say(f"  training stalled at a loss of {training['last_training_loss']:.2f} per target", style="red")
        for line in limit.advice():
            say(f"    {line}")
    if effects is not None:
        for line in effects.lines():
            say(f"  {line}", style="red" if effects.harmful else "")
    say(f"  curve    {curve}")
    base = f" --model {model}" if model != DEFAULT_MODEL else ""
    asked = "ask IMAGE QUESTION" if "{question}" in manifest.prompt else "caption IMAGE"
    say(f"  try it   lorax-vlm {asked} --adapter {stored.name}{base}")
