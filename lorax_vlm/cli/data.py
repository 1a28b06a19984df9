"""``lorax-vlm data``: looking after data sets. No torch until something is looked at."""

import importlib.util
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorax_vlm.asking import trained_template
from lorax_vlm.cli.options import (
    DEFAULT_MODEL,
    Annotations,
    AsJson,
    Columns,
    GroupBy,
    HeldOut,
    Images,
    Model,
    SkipBadRows,
    read_asked_data,
)
from lorax_vlm.cli.output import print_json, say
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.types import counted

if TYPE_CHECKING:
    from lorax_vlm.curation.export import Layout
    from lorax_vlm.data.examples import DataSplits

_SHOWN = 5
Source = Annotated[str, typer.Argument(help="As --data of train: a folder, a file of rows, or hub:owner/name.")]
Near = Annotated[
    bool | None,
    typer.Option(
        "--near/--no-near",
        help="Look for near duplicates: every image is opened. By default where imagehash is installed.",
        show_default=False,
    ),
]
To = Annotated[str, typer.Option("--to", help="Layout: folder, sidecars, csv, parquet, coco or vqav2.")]
Out = Annotated[Path | None, typer.Option("--out", help="New or empty folder.", show_default=False)]

_NOT_LOOKED_FOR = "near duplicates are not looked for: pip install 'lorax-vlm[data]'"

app = typer.Typer(help="Look after data sets: what is wrong with them, what repeats.", no_args_is_help=True)


@app.callback()
def data() -> None:
    """A group of commands."""


@app.command()
def check(
    source: Source,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    near: Near = None,
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
    from lorax_vlm.models.loading import describe_entry, load_family

    entry = get_model_entry(model)
    splits = _read(source, images, annotations, columns, True, held_out, group_by)
    entry = describe_entry(entry)
    template = trained_template(entry, splits.kind)
    looked_for = _can_look() if near is None else near
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
            say(_NOT_LOOKED_FOR)
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


@app.command()
def export(
    source: Source,
    to: To,
    out: Out = None,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    skip_bad_rows: SkipBadRows = False,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set anew in another layout, with copies of its images; read again it is the same data set."""
    splits = _read(source, images, annotations, columns, skip_bad_rows, held_out, group_by)
    _export(splits, source, out, to, as_json=as_json)


@app.command()
def dedupe(
    source: Source,
    to: To = "folder",
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is there twice, and write nothing.")] = False,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    skip_bad_rows: SkipBadRows = False,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    near: Annotated[
        bool, typer.Option("--near", help="Near duplicates, too; look at them with --dry-run first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a data set anew without images that are there twice, with --near or nearly; the source stays as it is.

    Of each group the largest image stays, with all that is said of any of them.
    """
    from lorax_vlm.curation.dedupe import dedupe as deduped

    found = deduped(
        _read(source, images, annotations, columns, skip_bad_rows, held_out, group_by),
        near=near,
    )
    if as_json and dry_run:
        print_json({"groups": found.groups, "copies": found.copies, "repeated": found.repeated})
    elif not as_json:
        for line in found.lines():
            say(line)
    if not dry_run:
        _export(found.splits, source, out, to, as_json=as_json)


@app.command()
def edit(
    source: Source,
    find: Annotated[str, typer.Option("--find", help="What is looked for in captions or answers, letter for letter.")],
    put: Annotated[str, typer.Option("--replace", help="What stands in its place.")],
    regex: Annotated[bool, typer.Option("--regex", help="--find is a regular expression.")] = False,
    to: To = "folder",
    out: Out = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Change the text files beside the images; data undo takes it back.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    images: Images = None,
    annotations: Annotations = None,
    columns: Columns = None,
    skip_bad_rows: SkipBadRows = False,
    held_out: HeldOut = None,
    group_by: GroupBy = None,
    as_json: AsJson = False,
) -> None:
    """Write a data set anew with something replaced in its texts; the source stays as it is, unless --in-place.

    Questions stay, and texts of which nothing would be left.
    """
    from lorax_vlm.curation.edit import replace_in_texts
    from lorax_vlm.curation.in_place import edit_text_files

    if in_place:
        of_copies: dict[str, object] = {
            "--out": out,
            "--images": images,
            "--annotations": annotations,
            "--columns": columns,
        }
        of_copies |= {"--held-out": held_out, "--group-by": group_by, "--skip-bad-rows": skip_bad_rows or None}
        of_copies |= {"--to": to if to != "folder" else None}
        if others := [name for name, value in of_copies.items() if value is not None]:
            raise UsageError(f"{', '.join(others)}: of a copy; --in-place changes the texts where they are.")
        edited = edit_text_files(Path(source).expanduser(), find, put, regex=regex, dry_run=dry_run)
        if as_json:
            print_json(edited)
            return
        listed = "--dry-run --json lists all" if edited.undo is None else f"all are in {edited.undo}"
        _say_changes(edited.changes, edited.emptied, listed)
        for name in edited.left:
            say(f"  no text, or changed meanwhile, and left as it is: {name}")
        if edited.undo is not None:
            say(f"to take it back: lorax-vlm data undo {shlex.quote(str(edited.undo))}")
        return
    splits = _read(source, images, annotations, columns, skip_bad_rows, held_out, group_by)
    found = replace_in_texts(splits, find, put, regex=regex)
    if as_json and dry_run:
        print_json({"changes": found.changes, "emptied": found.emptied})
    elif not as_json:
        _say_changes(found.changes, found.emptied)
    if not dry_run:
        _export(found.splits, source, out, to, as_json=as_json)


@app.command()
def undo(
    file: Annotated[Path, typer.Argument(help="Of an edit: .lorax-vlm/undo-....jsonl in the folder of the texts.")],
    as_json: AsJson = False,
) -> None:
    """Give the text files of an edit in place back what they held. Exit code 1 if one was changed since; it stays."""
    from lorax_vlm.curation.in_place import undo_edit

    done = undo_edit(file.expanduser())
    if as_json:
        print_json(done)
    else:
        say(f"{counted(len(done.restored), 'text')} as before")
        for name in done.left:
            say(f"  changed since, and left as it is: {name}")
    if done.left:
        raise typer.Exit(1)


def _say_changes(
    changes: Sequence[tuple[str, str, str]], emptied: Sequence[str], all_in: str = "--dry-run --json lists all"
) -> None:
    say(f"{counted(len(changes), 'text')} changed")
    for name, before, after in changes[:_SHOWN]:
        say(f"  {name}: {before!r} -> {after!r}")
    if len(changes) > _SHOWN:
        say(f"  and {len(changes) - _SHOWN:,} more; {all_in}")
    if emptied:
        say(f"{counted(len(emptied), 'text')} left as before, for nothing would be left: {emptied[0]}")


def _can_look() -> bool:
    return importlib.util.find_spec("imagehash") is not None


def _read(
    source: str,
    images: Path | None,
    annotations: Path | None,
    columns: str | None,
    skip_bad_rows: bool,
    held_out: float | None,
    group_by: str | None,
) -> "DataSplits":
    splits = read_asked_data(
        source, images, annotations, columns, False, skip_bad_rows, held_out, group_by, purpose="evaluate"
    )
    assert splits is not None
    return splits


def _export(splits: "DataSplits", source: str, out: Path | None, to: "Layout | str", *, as_json: bool) -> None:
    from lorax_vlm.curation.export import export_data

    if out is None:
        raise UsageError("Name a new or empty folder: --out FOLDER.")
    if Path(source).expanduser().is_dir() and out.expanduser().resolve().is_relative_to(
        Path(source).expanduser().resolve()
    ):
        raise UsageError(f"{out} lies in {source}, which would then be read with it: name a folder elsewhere.")
    done = export_data(splits, out, to)  # type: ignore[arg-type]
    if as_json:
        print_json(done)
        return
    say(f"Wrote {counted(done.rows, 'row')} about {counted(done.images, 'image')} to {done.folder}")
    for options in done.read_by:
        say(f"lorax-vlm train NAME {options}")
