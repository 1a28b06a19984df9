"""``lorax-vlm models``: the checkpoints known by name. No torch."""

import typer

from lorax_vlm.cli.options import AsJson
from lorax_vlm.cli.output import console, print_json, print_table
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
            "-" if entry.miniature else f"{(entry.download_bytes or 0) / 1e9:.1f} GB",
            "-" if entry.miniature else f"{2 * (entry.parameters or 0) / 1e9:.1f} GB",
            entry.licence,
        )
        for entry in entries
    ]
    print_table(["name", "key", "source", "parameters ", "download ", "in 16 bits ", "licence"], rows)
    console.print(
        "Any other BLIP-2 checkpoint with an OPT language model works by hub id or folder: --model owner/name"
    )
