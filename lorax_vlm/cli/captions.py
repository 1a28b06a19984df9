"""``lorax-vlm caption``. No torch."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorax_vlm.bulk.order import is_source
from lorax_vlm.cli.bulk import RUNNING, Manner, run_bulk
from lorax_vlm.cli.checks import image_problem, is_folder, require_stored
from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    AtATime,
    Columns,
    Device,
    Dtype,
    ImagesSomewhere,
    ImageTokens,
    Model,
    Quantize,
    Ray,
    Store,
    Workers,
    base_options,
    read_columns,
)
from lorax_vlm.cli.output import SILENT, print_json, print_table, say, say_drawn_only, say_wrote
from lorax_vlm.errors import ImageError, LoraxError, UsageError
from lorax_vlm.foreign import printable
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.paths import naming, require_new_file

if TYPE_CHECKING:
    from lorax_vlm.captioning import BLIP2CaptioningSystem


def caption(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Paths or http(s) URLs; or of many images: a folder, a file of rows, hub:owner/name, or - for a list."
        ),
    ],
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", "-a", help="Adapter to use; repeat to compare.", show_default=False)
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base and all its adapters.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write a comparison sheet (PNG) of one image.", show_default=False)
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Of a folder: its sub folders, too.")] = False,
    images_folder: ImagesSomewhere = None,
    columns: Columns = None,
    split: Annotated[str | None, typer.Option(help="Of hub:owner/name: one split.", show_default=False)] = None,
    follow_links: Annotated[bool, typer.Option("--follow-links", help="Go into sub folders that are links.")] = False,
    write: Annotated[
        str | None,
        typer.Option(
            help="Of many: txt, jsonl, csv, parquet, xmp; several by commas. Default: txt, of rows jsonl.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Of many: the folder where it is written, or its address (s3://); of rows perhaps a file. Default: "
            "beside the images; of rows here.",
            show_default=False,
        ),
    ] = None,
    existing: Annotated[
        str | None,
        typer.Option(
            help="Text files that are there: skip, overwrite (those written here), overwrite-all, append or prepend. "
            "Default: skip.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[str | None, typer.Option(help="Before each caption.", show_default=False)] = None,
    suffix: Annotated[str | None, typer.Option(help="After each caption.", show_default=False)] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Of {prefix}, {caption}, {suffix}, {folder}, {name}, {adapter}.", show_default=False),
    ] = None,
    pick: Annotated[
        str | None, typer.Option(help="Write one of several captions: first, longest or likeliest.", show_default=False)
    ] = None,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Of many: in tables, how likely the model finds each caption.")
    ] = False,
    review: Annotated[
        int | None,
        typer.Option(min=1, help="Of many: a page with so many of the least likely captions.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Captions by each adapter, with --temperature.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Of many: say what would be done.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Of many: exit code 1 if an image failed.")] = False,
    json_progress: Annotated[bool, typer.Option("--json-progress", help="Of many: progress as JSON lines.")] = False,
    batch_size: AtATime = None,
    ray: Ray = None,
    workers: Workers = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search width.", show_default=False)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Token limit.", show_default=False)] = None,
    min_new_tokens: Annotated[int | None, typer.Option(min=0, help="No shorter.", show_default=False)] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="With beams: above 0 for longer texts.", show_default=False)
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 against repetitions.", show_default=False)
    ] = None,
    forbid: Annotated[
        list[str] | None, typer.Option(help="A word that is not written; repeat for more.", show_default=False)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample instead.", show_default=False)] = None,
    top_p: Annotated[
        float | None, typer.Option(help="With a temperature: of the likeliest so much.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With a temperature: repeatable, for each image anew.", show_default=False)
    ] = None,
    model: Model = DEFAULT_MODEL,
    store: Store = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantize: Quantize = "auto",
    image_tokens: ImageTokens = None,
    as_json: AsJson = False,
) -> None:
    """Caption images with the base, with adapters, or with all of them side by side; or very many of them.

    An image that cannot be read is said, and the others are captioned; of images that are named one by one the exit
    code is 1 then, of a folder or rows only with --strict. Of a folder each image gets a text file, as it comes, of
    rows there is a table; the same command goes on where it ended, and what failed is listed in a file.
    """
    asked = {
        "num_beams": beams,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "length_penalty": length_penalty,
        "repetition_penalty": repetition_penalty,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "forbid": tuple(forbid) if forbid else None,
    }
    changes: dict[str, Any] = {field: value for field, value in asked.items() if value is not None}
    options = base_options(store, device, dtype, quantize, image_tokens)
    of_folders = {
        "--images": images_folder,
        "--columns": columns,
        "--split": split,
        "--recursive": recursive,
        "--follow-links": follow_links,
        "--write": write,
        "--out": out,
        "--existing": existing,
        "--prefix": prefix,
        "--suffix": suffix,
        "--template": template,
        "--pick": pick,
        "--likelihood": likelihood,
        "--review": review,
        "--samples": samples,
        "--dry-run": dry_run,
        "--strict": strict,
        "--json-progress": json_progress,
        "--batch-size": batch_size,
        "--ray": ray,
        "--workers": workers,
    }
    if len(images) == 1 and (images[0] == "-" or is_source(images[0]) or is_folder(images[0])):
        if compare or sheet is not None:
            raise UsageError(
                "--compare and --sheet are for single images; of many name the adapters, -a (base is the base)."
            )
        wishes: dict[str, Any] = {
            name.strip("-").replace("-", "_"): value for name, value in of_folders.items() if value
        }
        manner = Manner(options, as_json=as_json, **{name: wishes.pop(name) for name in RUNNING if name in wishes})
        if write is not None:
            wishes["write"] = [kind.strip() for kind in write.split(",")]
        if columns is not None:
            wishes["columns"] = read_columns(columns)
        run_bulk(context, images[0], adapter or [], model, {**wishes, "decoding": changes}, manner)
        return
    if others := [name for name, value in of_folders.items() if value]:
        raise UsageError(f"{', '.join(others)}: only of a folder, rows or a list, and {images[0]!r} is none.")
    if sheet is not None and len(images) != 1:
        raise UsageError(f"--sheet shows one image, {len(images)} were given.")
    if compare and adapter:
        raise UsageError("--compare captions with the base and all its adapters: leave --adapter out, or --compare.")
    _caption_each(images, adapter or [], changes, model, options, compare=compare, sheet=sheet, as_json=as_json)


def _caption_each(
    images: list[str],
    adapter: list[str],
    changes: dict[str, Any],
    model: str,
    options: dict[str, Any],
    *,
    compare: bool,
    sheet: Path | None,
    as_json: bool,
) -> None:
    entry, sheet = get_model_entry(model), require_new_file(sheet, ".png")
    require_stored(options["store"], adapter, entry)
    if len(images) == 1 and (problem := image_problem(images[0])) is not None:
        raise problem
    from lorax_vlm.captioning import BLIP2CaptioningSystem

    system = BLIP2CaptioningSystem(model, **options)
    if compare or sheet is not None or len(adapter) > 1:
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
