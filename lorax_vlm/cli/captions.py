"""``lorax-vlm caption``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorax_vlm.cli.options import DEFAULT_MODEL, AsJson, Device, Dtype, Model, Quantize, Store
from lorax_vlm.cli.output import console, print_json, print_table
from lorax_vlm.errors import UsageError


def caption(
    images: Annotated[list[str], typer.Argument(help="Paths or http(s) URLs.")],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="Adapter to use; repeat to compare.", show_default=False)
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base and all its adapters.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a comparison sheet (PNG) of one image.", show_default=False)
    ] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search width.", show_default=False)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit.", show_default=False)] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    as_json: AsJson = False,
) -> None:
    """Caption images with the base, with adapters, or with all of them side by side."""
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.data.images import load_image
    from lorax_vlm.evaluation.sheet import draw_comparison_sheet

    if sheet is not None and len(images) != 1:
        raise UsageError(f"--sheet shows one image, {len(images)} were given.")
    system = BLIP2CaptioningSystem(model, store=store, device=device, dtype=dtype, quantize=quantize)
    asked = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    changes: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    results: dict[str, dict[str, str]] = {}
    for image in images:
        if compare or sheet is not None or (adapter and len(adapter) > 1):
            results[image] = dict(system.compare_captioning_styles(image, None if compare else adapter, **changes))
        else:
            name = adapter[0] if adapter else None
            results[image] = {name or "base": system.caption_image(image, name, **changes)}
    if sheet is not None:
        draw_comparison_sheet(load_image(images[0]), results[images[0]], sheet, title=system.entry.name)
    if as_json:
        print_json({"model": system.entry.name, "captions": results})
        return
    for image, captions in results.items():
        if len(results) == 1 and len(captions) == 1:
            console.print(next(iter(captions.values())) or "(the model ended without a word)", highlight=False)
        else:
            print_table(["adapter", "caption"], list(captions.items()), title=image)
    if sheet is not None:
        console.print(f"Wrote {sheet}", highlight=False)
