"""``lorax-vlm models``: the checkpoints known by name. No torch."""

from typing import Annotated

import typer

from lorax_vlm.cli.options import AsJson
from lorax_vlm.cli.output import print_json, print_table, say
from lorax_vlm.models.catalog import list_models as catalog_rows

app = typer.Typer(help="The base models known by name.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def models() -> None:
    """The base models known by name."""


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the catalogue. Other checkpoints of these families work by hub id or folder."""
    entries = catalog_rows()
    if as_json:
        print_json({"models": list(entries)})
        return
    rows = [
        (
            entry.name,
            entry.key or "-",
            "shipped" if entry.miniature else entry.source,
            f"{entry.parameters:,}" if entry.parameters else "?",
            f"{entry.image_tokens}" if entry.image_tokens else "-",
            "-" if entry.miniature else f"{entry.download_bytes / 1e9:.1f} GB" if entry.download_bytes else "?",
            "-" if entry.miniature else f"{2 * (entry.parameters or 0) / 1e9:.1f} GB",
            entry.licence,
        )
        for entry in entries
    ]
    print_table(["name", "key", "source", "parameters ", "image tokens ", "download ", "in 16 bits ", "licence"], rows)
    say(
        "Any other checkpoint of these families (BLIP-2 with OPT or T5, InstructBLIP with LLaMA, ViLT, Idefics3 and "
        "SmolVLM with LLaMA) works by hub id or folder: --model owner/name"
    )


@app.command("fingerprint")
def fingerprint(
    name: Annotated[str, typer.Argument(help="Catalogue name, key, hub id or folder.")], as_json: AsJson = False
) -> None:
    """Read all weights of a base, so that adapters can be compared with it; the result is kept."""
    from lorax_vlm.models.catalog import get_model_entry
    from lorax_vlm.models.loading import describe_model

    base = describe_model(get_model_entry(name), anew=True)
    assert base.fingerprint is not None  # just read
    if as_json:
        print_json({"name": base.name, "family": base.family, "components": base.fingerprint.components})
        return
    rows = list(base.fingerprint.components.items())
    rows += [("tokenizer", base.tokenizer or "unknown"), ("image processor", base.processor or "unknown")]
    print_table(["", "digest"], rows, f"{base.name}, {base.family}, {len(base.fingerprint.tensors)} tensors")
