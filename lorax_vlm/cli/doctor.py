"""``lorax-vlm doctor``: what this machine would do, and what a training batch really teaches. No torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lorax_vlm.adapters.recipe import SEEING_SITES
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
    list_left_out,
    read_asked_data,
)
from lorax_vlm.cli.output import console, print_json, print_table, say, say_parts
from lorax_vlm.data.world.examples import GENERAL
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.skills import answer, caption
from lorax_vlm.versions import package_versions

if TYPE_CHECKING:
    from lorax_vlm.adapters.store import AdapterStore
    from lorax_vlm.data.examples import DataSplits
    from lorax_vlm.models.catalog import CatalogEntry
    from lorax_vlm.training.inspection import BatchInspection
    from lorax_vlm.training.probe import ProbeReport

_VERDICTS = {
    "depends": "it depends on the image",
    "ignored": "the image is ignored",
    "cannot tell": "cannot tell whether the image matters",
}
_USUAL_ROWS = 4
_PACKAGES = ("lorax-vlm", "torch", "transformers", "peft", "accelerate", "safetensors", "Pillow", "bitsandbytes")


def doctor(
    data: Data = None,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    streaming: Streaming = False,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    skip_bad_rows: SkipBadRows = False,
    style: Annotated[
        str | None, typer.Option(help="Look into a batch of this style's scenes.", show_default=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Look into a batch of questions of this type.", show_default=False)
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=2, max=64, help="Rows of the batch to look into; by default 4.", show_default=False),
    ] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    image_tokens: ImageTokens = None,
    as_json: AsJson = False,
) -> None:
    """Show device, memory, versions and what would be loaded.

    With --data, --style or --task, what training would refuse is refused, and one training batch is decoded: which
    tokens carry loss, and whether the loss changes when the images are shuffled. It must: otherwise the model does not
    look at them, and the exit code is 1. With --data of questions, it also says how much of the answers can be read off
    the frozen image path.
    """
    from lorax_vlm.adapters.store import AdapterStore
    from lorax_vlm.models.catalog import get_model_entry
    from lorax_vlm.models.description import describe_checkpoint
    from lorax_vlm.models.local import find_checkpoint

    entry = get_model_entry(model)
    if not entry.family and (folder := find_checkpoint(entry)) is not None:
        describe_checkpoint(folder, entry.name)  # a folder of something else is said before it is called unknown
    looks = data is not None or style is not None or task is not None
    _check_options(entry, style, task, rows if not looks else None)
    given = (data, images, annotations, columns, streaming, skip_bad_rows, held_out, group_by)
    splits = read_asked_data(*given, purpose="inspect")
    adapters = AdapterStore(store)
    facts, versions = _machine(entry, adapters, (device, dtype, quantize)), package_versions(_PACKAGES)
    found: _Found | None = None
    if looks:
        system = base_options(store, device, dtype, quantize, image_tokens)
        found = _look(entry, model, system, splits, style, task, skip_bad_rows, rows or _USUAL_ROWS)
    if as_json:
        print_json({"machine": facts, "versions": versions, **(found or _Found())._asdict()})
    else:
        print_table(["", "lorax-vlm doctor"], [*facts.items(), *versions.items()])
        for broken_entry in adapters.list()[1]:
            say(f"broken adapter {broken_entry.name}: {broken_entry.error}")
        if found is not None:
            _print_found(found)
    if found is not None and found.batch is not None and found.batch.verdict == "ignored":
        raise typer.Exit(1)


class _Found(NamedTuple):
    """What was found out about a training batch."""

    data: Sequence[str] = ()
    batch: "BatchInspection | None" = None
    image_path: "ProbeReport | None" = None
    seeing_recipe: str = ""
    """The recipe that training takes by default, where it adapts the image path."""


def _machine(entry: "CatalogEntry", adapters: "AdapterStore", asked: tuple[Device, Dtype, Quantize]) -> dict[str, str]:
    """What this machine is, and what would be loaded on it."""
    from lorax_vlm.models.loading import probe_hardware
    from lorax_vlm.models.placement import plan_placement

    hardware = probe_hardware()
    placement = plan_placement(entry, hardware, *asked)
    free = hardware.free_cuda_bytes if placement.device == "cuda" else hardware.free_ram_bytes
    fits = None if placement.needed_bytes is None else placement.needed_bytes <= free
    good, broken = adapters.list()
    return {
        "device": hardware.cuda_device or "cpu",
        "free memory": f"{hardware.free_ram_bytes / 1e9:.1f} GB",
        "bfloat16 on this CPU": "yes" if hardware.cpu_bfloat16 else "no",
        "model": f"{entry.name} ({entry.source})",
        "would run on": f"{placement.device}, {placement.dtype}, quantisation {placement.quantization}",
        "because": placement.reason,
        "needs": "unknown before loading"
        if placement.needed_bytes is None
        else f"{placement.needed_bytes / 1e9:.2f} GB",
        "fits": {True: "yes", False: "no", None: "unknown"}[fits],
        "adapter store": f"{adapters.root}: {len(good)} adapters, {len(broken)} broken",
    }


def _look(
    entry: "CatalogEntry",
    model: str,
    system: dict[str, Any],
    splits: "DataSplits | None",
    style: str | None,
    task: str | None,
    skip_bad_rows: bool,
    rows: int,
) -> _Found:
    """Look into a batch as training would build it, and at what the image path hands on of own data."""
    from lorax_vlm.training.inspection import FEWEST_EXAMPLES
    from lorax_vlm.training.probe import probe_image_path
    from lorax_vlm.workspace import Workspace

    workspace, notes = Workspace(**system), []
    questions = splits is not None and not style and splits.kind == "questions"
    skill = caption(style or "")
    if task is not None or questions or not entry.captions:
        skill = answer(task or GENERAL)
        notes = [] if task is not None else ["these are questions: train them with --task NAME"]
    workshop = workspace.workshop(model)
    plan = workshop.plan(workshop.order("doctor", skill, data=splits, skip_bad_rows=skip_bad_rows))
    data = list_left_out(plan.data)
    if isinstance(data.train, Sequence) and len(data.train) < FEWEST_EXAMPLES:
        left = f"{len(data.train)} training example is left; a batch to look into needs {FEWEST_EXAMPLES}"
        raise DataError(data.source, [*data.left_out, left])
    described = [*data.describe(), *notes]
    with workspace.bases.use(model) as engine:
        reading = probe_image_path(engine.base, data.train) if splits is not None else None
    seeing = plan.recipe.name if IMAGE_PATH_COMPONENTS.intersection(plan.recipe.groups) else ""
    return _Found(described, workshop.inspect(plan, rows), reading, seeing)


def _check_options(entry: "CatalogEntry", style: str | None, task: str | None, rows: int | None) -> None:
    """Raise ``UsageError`` for options that contradict each other, or that nothing would come of."""
    if style is not None and task is not None:
        raise UsageError("Give --style for captions or --task for answers, not both.")
    if style is not None and not entry.captions:
        raise UsageError(f"{entry.name} only chooses among fixed answers; it cannot write captions.")
    if rows is not None:
        raise UsageError("--rows is of the batch to look into: give --data, --style or --task.")


def _print_found(found: _Found) -> None:
    for line in found.data:
        say(line)
    if found.batch is not None:
        _print_inspection(found.batch)
    if found.image_path is not None:
        _print_reading(found.image_path, found.seeing_recipe)


def _print_inspection(inspection: "BatchInspection") -> None:
    say("")
    in_colour = console.is_terminal
    how = [("Green", "bold green"), (" tokens carry loss, grey ones do not.", "")]
    say_parts([("One training batch. ", ""), *(how if in_colour else [("Tokens in [brackets] carry loss.", "")])])
    for row in inspection.rows:
        images = sum(token == "<image>" for token, _ in row.tokens)
        parts = [(f"{row.name}: ", "bold"), (f"<image>x{images} ", "bright_black")]
        parts += [
            (_shown(token, carries, in_colour), "bold green" if carries else "bright_black")
            for token, carries in row.tokens
            if token != "<image>"
        ]
        say_parts(parts)
        if not row.ends_with_eos:
            say("  the last token that carries loss is not the end token: it would never stop", style="red")
    losses = (
        f"loss {_loss(inspection.loss)}, with shuffled images {_loss(inspection.shuffled_loss)}, "
        f"with blank images {_loss(inspection.blank_loss)}: "
    )
    say_parts([(losses, ""), (_VERDICTS[inspection.verdict], "red" if inspection.verdict == "ignored" else "")])
    if inspection.verdict != "depends":
        say(f"{inspection.reason}.")


def _shown(token: str, carries_loss: bool, in_colour: bool) -> str:
    text = repr(token)[1:-1]
    return f"[{text}]" if carries_loss and not in_colour else text


def _print_reading(reading: "ProbeReport", recipe: str) -> None:
    for line in reading.lines():
        say(line)
    if reading.limits:
        way_out = f"train adapts it as well by default (recipe {recipe})" if recipe else f"try --sites {SEEING_SITES}"
        say(f"so the image path may limit an adapter of the language model alone; {way_out}")


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"
