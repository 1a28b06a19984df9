"""``lorax-vlm exchange``: move adapters between bases, merge and fold them. No torch."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.cli.checks import find_adapter
from lorax_vlm.cli.options import AsJson, Model, Store
from lorax_vlm.cli.output import print_json, say
from lorax_vlm.errors import UsageError

if TYPE_CHECKING:
    from lorax_vlm.exchange.report import TransferReport
    from lorax_vlm.exchange.swap import ExchangeReport

app = typer.Typer(
    help="Move adapters to other bases, merge them, fold what is not plain LoRA.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="Name of the adapter.")]
To = Annotated[str, typer.Option("--to", help="Catalogue name, key, hub id or folder of the other base.")]
Unlabelled = Annotated[
    Path | None,
    typer.Option(help="Folder of images, perhaps with questions in metadata.jsonl.", show_default=False),
]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Leave out what cannot be moved.")]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help="Distillation steps. Default: a quarter of the target's usual training steps.", show_default=False
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Make a new version when the name exists.")]


@app.command("plan")
def plan(
    name: Name,
    to: To,
    images: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Unlabelled images at hand. Default: those that a transfer draws between miniatures, else none.",
            show_default=False,
        ),
    ] = None,
    allow_partial: AllowPartial = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Say what moving an adapter would take. Nothing is changed. Exit code 1 when it is refused.

    The target's weights are read if they never were, as a transfer would; what was read is kept.
    """
    from lorax_vlm.exchange.planning import plan_stored
    from lorax_vlm.exchange.transfer_data import ENOUGH_UNLABELLED
    from lorax_vlm.models.catalog import get_model_entry
    from lorax_vlm.models.local import describe_local

    adapters, name = find_adapter(store, name)
    entry, target = get_model_entry(to), describe_local(to)
    if target.fingerprint is None:
        from lorax_vlm.models.loading import describe_model

        target = replace(target, fingerprint=describe_model(entry).fingerprint)
    asked = partial(plan_stored, adapters, name, entry, target, allow_partial=allow_partial)
    found = asked(images=images)
    if as_json:
        print_json(found)
    else:
        _print_lines(found.lines())
        if found.refused and not images and not (taught := asked(images=ENOUGH_UNLABELLED)).refused:
            say(f"with {ENOUGH_UNLABELLED} unlabelled images (--images {ENOUGH_UNLABELLED}) or more: {taught.label}")
    if found.refused:
        raise typer.Exit(1)


@app.command("transfer")
def transfer(
    name: Name,
    to: To,
    new_name: Annotated[
        str | None, typer.Option("--name", help="Short name of the result.", show_default=False)
    ] = None,
    unlabelled: Unlabelled = None,
    development: Annotated[
        str | None, typer.Option(help="Labelled data to choose with; see train --data.", show_default=False)
    ] = None,
    steps: Steps = None,
    allow_partial: AllowPartial = False,
    replace: Replace = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Move an adapter to another base, measure the result, and store it only if it is worth something there.

    Miniatures use scenes that no adapter was trained on.
    """
    from lorax_vlm.multimodal import MultiModalLoRAExchange

    system = MultiModalLoRAExchange(store=store)
    report = system.cross_model_adapter_transfer(
        system.store.resolve(name),
        to,
        new_name,
        unlabelled=unlabelled,
        development=development,
        steps=steps,
        allow_partial=allow_partial,
        replace=replace,
        progress=not as_json,
    )
    _print_report(report, as_json)


@app.command("swap")
def swap(
    first: Annotated[str, typer.Argument(help="Adapter of one base.")],
    second: Annotated[str, typer.Argument(help="Adapter of another base.")],
    unlabelled: Unlabelled = None,
    steps: Steps = None,
    allow_partial: AllowPartial = False,
    replace: Replace = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Move two adapters to each other's base: both, or neither."""
    from lorax_vlm.multimodal import MultiModalLoRAExchange

    system = MultiModalLoRAExchange(store=store)
    report = system.exchange_adapters(
        system.store.resolve(first),
        system.store.resolve(second),
        unlabelled=unlabelled,
        steps=steps,
        allow_partial=allow_partial,
        replace=replace,
        progress=not as_json,
    )
    _print_report(report, as_json)


@app.command("merge")
def merge(
    names: Annotated[list[str], typer.Argument(help="Two or more adapters of one base.")],
    new_name: Annotated[str, typer.Option("--name", help="Short name of the result.")],
    method: Annotated[str, typer.Option(help="cat (exact), svd, linear, ties or dare.")] = "cat",
    weights: Annotated[list[float] | None, typer.Option("--weight", help="One per adapter; by default 1.")] = None,
    rank: Annotated[int | None, typer.Option(help="Most ranks per site; not for cat.", show_default=False)] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show what merging would do; write nothing.")] = False,
    replace: Replace = False,
    store: Store = None,
) -> None:
    """Merge adapters of one base into one."""
    adapters = AdapterStore(store)
    names = [adapters.resolve(name) for name in names]
    if preview and replace:
        raise UsageError("--preview writes nothing, so there is nothing to --replace.")
    if preview:
        from lorax_vlm.exchange.merge import preview_stored

        _print_lines(preview_stored(adapters, names, weights, method, rank).lines())  # type: ignore[arg-type]
        return
    from lorax_vlm.multimodal import MultiModalLoRAExchange

    system = MultiModalLoRAExchange(store=store)
    key, report = system.merge_adapters(
        names,
        new_name,
        weights=weights,
        method=method,  # type: ignore[arg-type]
        rank=rank,
        replace=replace,
    )
    _print_lines(
        [*report.preview.lines(), f"stored as {key!r}: {report.method}, rank {report.rank}, error {report.error:.1e}"]
    )


@app.command("fold")
def fold(
    folder: Annotated[Path, typer.Argument(help="A PEFT folder: DoRA, LoHa, LoKr, ...")],
    out: Annotated[Path, typer.Argument(help="New folder for the plain LoRA.")],
    model: Model,
    rank: Annotated[
        int | None, typer.Option(help="Most ranks per site; by default as many as needed.", show_default=False)
    ] = None,
) -> None:
    """Turn an adapter of another method into plain LoRA that does the same, checked on the model's logits."""
    from lorax_vlm.exchange.fold import fold_adapter
    from lorax_vlm.models.loading import load_model

    report = fold_adapter(load_model(model, dtype="float32"), folder, out, rank=rank)
    say(
        f"{report.method} as plain LoRA of rank {', '.join(map(str, report.ranks))}: weights differ by "
        f"{report.weight_error:.1e} of the update, logits by {report.logits_error:.1e} of its effect. "
        f"Wrote {report.folder}"
    )


def _print_report(report: "TransferReport | ExchangeReport", as_json: bool) -> None:
    """Print what was done; exit code 1 when nothing was stored."""
    if as_json:
        print_json(report.record())
    else:
        _print_lines(report.lines())
    if not report.accepted:
        raise typer.Exit(1)


def _print_lines(lines: list[str]) -> None:
    for line in lines:
        say(line)
