"""``lorax-vlm data``: looking after data sets. No torch until something is looked at."""

import importlib.util
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    Annotations,
    AsJson,
    Columns,
    GroupBy,
    HeldOut,
    Images,
    Model,
    read_asked_data,
)
from lorax_vlm.cli.output import print_json, say
from lorax_vlm.models.catalog import get_model_entry

_SHOWN = 5

app = typer.Typer(help="Look after data sets: what is wrong with them, what repeats.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """A group of commands."""


@app.command()
def check(
    source: Annotated[str, typer.Argument(help="As --data of train: a folder, a file of rows, or hub:owner/name.")],
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    near: Annotated[
        bool | None,
        typer.Option(
            "--near/--no-near",
            help="Look for near duplicates: every image is opened. By default where imagehash is installed.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if anything was found.")] = False,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Say what a data set is like before anything is trained on it; nothing is changed.

    Rows that cannot be used, images without a text, of another format than their name says, twice or nearly twice, in
    one part or in several; texts that the base cannot learn; phrases in over 80 % of captions, and answers that are
    nearly always right. The parts are those that training would make.
    """
    from lorax_vlm.curation.check import check_data
    from lorax_vlm.models.loading import load_family

    entry = get_model_entry(model)
    splits = read_asked_data(source, images, annotations, columns, False, True, held_out, group_by, purpose="evaluate")
    assert splits is not None
    template = entry.question_template if splits.kind == "questions" else entry.caption_prompt
    looked_for = importlib.util.find_spec("imagehash") is not None if near is None else near
    folder = Path(source).expanduser()
    found = check_data(splits, load_family(entry), template, root=folder if folder.is_dir() else None, near=looked_for)
    if as_json:
        print_json(found)
    else:
        rows = ", ".join(f"{count:,} {part}" for part, count in found.rows.items())
        fewest, median, most = found.words
        say(f"{found.source}: {found.kind}, {rows}; {found.images:,} different images")
        say(f"words of a text: {fewest} to {most}, half of them up to {median:g}")
        for note in splits.notes:
            say(note)
        if near is None and not looked_for:
            say("near duplicates are not looked for: pip install 'lorax-vlm[data]'")
        for finding in found.findings:
            say(finding.text)
            for place in islice(finding.places, _SHOWN):
                say(f"  {place}")
            if len(finding.places) > _SHOWN:
                say(f"  and {len(finding.places) - _SHOWN:,} more; --json lists all")
        if not found.findings:
            say("nothing was found that speaks against training on it")
    if strict and found.findings:
        raise typer.Exit(1)
