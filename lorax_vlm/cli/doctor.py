"""``lorax-vlm doctor``: what this machine would do, and what a training batch really teaches."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

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
    Model,
    Quantize,
    SkipBadRows,
    Store,
    Streaming,
    read_asked_data,
)
from lorax_vlm.cli.output import print_json, print_table, say, say_parts
from lorax_vlm.versions import package_versions

if TYPE_CHECKING:
    from lorax_vlm.training.inspection import BatchInspection
    from lorax_vlm.training.probe import ProbeReport

_VERDICTS = {
    "depends": "it depends on the image",
    "ignored": "the image is ignored",
    "cannot tell": "cannot tell whether the image matters",
}
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
    rows: Annotated[int, typer.Option(min=2, max=64, help="Rows of the batch to look into.")] = 4,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Show device, memory, versions and what would be loaded.

    With --data, --style or --task, what training would refuse is refused, and one training batch is decoded: which
    tokens carry loss, and whether the loss changes when the images are shuffled. It must: otherwise the model does not
    look at them, and the exit code is 1. With --data of questions, it also says how much of the answers can be read off
    the frozen image path.
    """
    from lorax_vlm.adapters.store import AdapterStore
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.models.catalog import get_model_entry
    from lorax_vlm.models.loading import probe_hardware
    from lorax_vlm.models.placement import plan_placement
    from lorax_vlm.training.probe import probe_image_path
    from lorax_vlm.vqa import VQASystem
    from lorax_vlm.workshop import AdapterWorkshop

    entry, hardware = get_model_entry(model), probe_hardware()
    placement = plan_placement(entry, hardware, device, dtype, quantize)
    free = hardware.free_cuda_bytes if placement.device == "cuda" else hardware.free_ram_bytes
    fits = None if placement.needed_bytes is None else placement.needed_bytes <= free
    good, broken = AdapterStore(store).list()
    facts = {
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
        "adapter store": f"{AdapterStore(store).root}: {len(good)} adapters, {len(broken)} broken",
    }
    versions = package_versions(_PACKAGES)
    inspection: BatchInspection | None = None
    reading: ProbeReport | None = None
    described: list[str] = []
    notes: list[str] = []
    if data is not None or style or task:
        splits = read_asked_data(data, images, annotations, columns, streaming, skip_bad_rows, held_out, group_by)
        options: dict[str, Any] = {"store": store, "device": device, "dtype": dtype, "quantize": quantize}
        answering = VQASystem(**options)
        questions = splits is not None and not style and splits.kind == "questions"
        if task is not None or questions or not entry.captions:
            order = answering.order(model, "doctor", task or "general", data=splits)
            notes = [] if task is not None else ["these are questions: train them with --task NAME"]
        else:
            order = BLIP2CaptioningSystem(model, **options).order("doctor", style or "", data=splits)
        order = replace(order, skip_bad_rows=skip_bad_rows)
        described = [*order.splits.describe(), *notes]
        library = answering.library(model)
        inspection = AdapterWorkshop(library).inspect(order, rows)
        reading = probe_image_path(library.base, order.splits.train) if data is not None else None
    if as_json:
        found = {"data": described, "batch": inspection, "image_path": reading}
        print_json({"machine": facts, "versions": versions, **found})
    else:
        print_table(["", "lorax-vlm doctor"], [*facts.items(), *versions.items()])
        for broken_entry in broken:
            say(f"broken adapter {broken_entry.name}: {broken_entry.error}")
        for line in described:
            say(line)
        if inspection is not None:
            _print_inspection(inspection)
        if reading is not None:
            _print_reading(reading)
    if inspection is not None and inspection.verdict == "ignored":
        raise typer.Exit(1)


def _print_inspection(inspection: "BatchInspection") -> None:
    say("")
    heading = [("One training batch. ", ""), ("Green", "bold green"), (" tokens carry loss, grey ones do not.", "")]
    say_parts(heading)
    for row in inspection.rows:
        images = sum(token == "<image>" for token, _ in row.tokens)
        parts = [(f"{row.name}: ", "bold"), (f"<image>x{images} ", "bright_black")]
        parts += [
            (repr(token)[1:-1], "bold green" if carries else "bright_black")
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


def _print_reading(reading: "ProbeReport") -> None:
    for line in reading.lines():
        say(line)
    if reading.limits:
        say(f"so the image path may limit an adapter of the language model alone; try --sites {SEEING_SITES}")


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"
