"""``lorax-vlm caption``. No torch."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorax_vlm.cli.checks import image_problem, require_stored
from lorax_vlm.cli.options import DEFAULT_MODEL, AsJson, Device, Dtype, Model, Quantize, Store
from lorax_vlm.cli.output import SILENT, print_json, print_table, say, say_drawn_only, say_wrote
from lorax_vlm.errors import ImageError, LoraxError, UsageError
from lorax_vlm.foreign import printable
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.paths import naming, require_new_file

if TYPE_CHECKING:
    from lorax_vlm.captioning import BLIP2CaptioningSystem


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
    """Caption images with the base, with adapters, or with all of them side by side.

    An image that cannot be read is said, and the others are captioned; the exit code is 1 then.
    """
    if sheet is not None and len(images) != 1:
        raise UsageError(f"--sheet shows one image, {len(images)} were given.")
    if compare and adapter:
        raise UsageError("--compare captions with the base and all its adapters: leave --adapter out, or --compare.")
    entry, sheet = get_model_entry(model), require_new_file(sheet, ".png")
    require_stored(store, adapter or [], entry)
    if len(images) == 1 and (problem := image_problem(images[0])) is not None:
        raise problem
    from lorax_vlm.captioning import BLIP2CaptioningSystem

    system = BLIP2CaptioningSystem(model, store=store, device=device, dtype=dtype, quantize=quantize)
    asked = {"num_beams": beams, "max_new_tokens": max_new_tokens}
    changes: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    if compare or sheet is not None or len(adapter or []) > 1:
        results, failed = _compare(system, images, None if compare else adapter, changes)
    else:
        results, failed = _caption(system, images, adapter[0] if adapter else None, changes)
    if not results:
        raise next(iter(failed.values()))
    if as_json:
        print_json({"model": system.entry.name, "captions": results, **({"errors": failed} if failed else {})})
    else:
        _print(results, named=len(images) > 1)
        if entry.miniature:
            say_drawn_only(entry.name, images)
    if sheet is not None:
        _draw(images[0], results[images[0]], sheet, system.entry.name, as_json=as_json)
    for error in failed.values():
        sys.stderr.write(f"{type(error).__name__}: {printable(str(error))}\n")
    if failed:
        raise typer.Exit(1)


_Captions = dict[str, Mapping[str, str]]


def _compare(
    system: "BLIP2CaptioningSystem", images: Sequence[str], adapters: Sequence[str] | None, changes: dict[str, Any]
) -> tuple[_Captions, dict[str, LoraxError]]:
    """Captions of base and adapters by image, and the errors of those that could not be read."""
    results: _Captions = {}
    failed: dict[str, LoraxError] = {}
    for image in images:
        try:
            results[image] = system.compare_captioning_styles(image, adapters, **changes)
        except ImageError as error:
            failed[image] = error
    return results, failed


def _caption(
    system: "BLIP2CaptioningSystem", images: Sequence[str], adapter: str | None, changes: dict[str, Any]
) -> tuple[_Captions, dict[str, LoraxError]]:
    said = dict(zip(images, system.caption_images(images, adapter, return_errors=True, **changes), strict=True))
    failed = {image: text for image, text in said.items() if isinstance(text, LoraxError)}
    return {image: {adapter or "base": text} for image, text in said.items() if isinstance(text, str)}, failed


def _draw(image: str, captions: Mapping[str, str], sheet: Path, title: str, *, as_json: bool) -> None:
    from lorax_vlm.data.images import load_image
    from lorax_vlm.reports.sheet import draw_comparison_sheet

    with naming(sheet):
        draw_comparison_sheet(load_image(image), captions, sheet, title=title)
    say_wrote(sheet, as_json=as_json)


def _print(results: Mapping[str, Mapping[str, str]], *, named: bool) -> None:
    """Print captions, a single one alone unless several images were asked about."""
    for image, captions in results.items():
        if not named and len(captions) == 1:
            say(next(iter(captions.values())) or SILENT)
        else:
            print_table(["adapter", "caption"], [(name, text or SILENT) for name, text in captions.items()], image)
