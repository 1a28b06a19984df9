"""Options that several commands share. No torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorax_vlm.errors import PathError, UsageError
from lorax_vlm.models import placement
from lorax_vlm.settings import left_out_dir

if TYPE_CHECKING:
    from lorax_vlm.data.examples import DataSplits
    from lorax_vlm.data.image_facts import Progress
    from lorax_vlm.data.readers import columns as data_columns

Purpose = Literal["train", "inspect", "evaluate"]
SplitChoice = Literal["train", "validation", "test", "held-out", "all"]
DEFAULT_MODEL = "blip2-opt-mini"

Model = Annotated[
    str, typer.Option("--model", "-m", help="Key (such as blip2_opt), catalogue name, hub id or folder of the base.")
]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="Adapter store; by default the one of LORAX_VLM_HOME.", show_default=False),
]
Device = Annotated[placement.Device, typer.Option("--device", help="Where to compute.")]
Dtype = Annotated[placement.Precision, typer.Option("--dtype", help="Precision of the base.")]
ImageTokens = Annotated[
    int | None,
    typer.Option(
        "--image-tokens",
        min=1,
        help="Most tokens of an image, for bases that take large ones apart. Default: as few as can be.",
        show_default=False,
    ),
]
Quantize = Annotated[placement.Quantization, typer.Option("--quantize", help="Quantisation of the language model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder of images with metadata.jsonl, metadata.csv or texts beside them; a .jsonl, .csv, .parquet or "
        ".json file (COCO, VQAv2, a list of rows); or hub:owner/name. By default the miniature scenes.",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="With a file: the folder of its images.", show_default=False)
]
ImagesSomewhere = Annotated[
    str | None,
    typer.Option("--images", help="With a file: the folder of its images, or its address.", show_default=False),
]
Annotations = Annotated[
    Path | None, typer.Option("--annotations", help="With VQAv2 questions: the file of answers.", show_default=False)
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", help="Our fields by column where names differ: image=img,question=q,answer=a.", show_default=False
    ),
]
AtATime = Annotated[
    str | None,
    typer.Option(
        "--batch-size",
        help="Of many: images at a time, or auto, as many as fit a GPU. Half as many where memory does not suffice. "
        "Default: 32.",
        show_default=False,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Of many: on a Ray cluster, local, auto or its address; needs the extra [ray].",
        show_default=False,
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="With --ray: engines. Default: 2.", show_default=False)]
Streaming = Annotated[bool, typer.Option("--streaming", help="With hub data: read rows while training.")]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave malformed rows out, and list them in a file.")
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        "--held-out",
        help="Share of the images that is held out where the data have no validation part; by default 0.1.",
        show_default=False,
    ),
]
GroupBy = Annotated[
    str | None,
    typer.Option(
        "--group-by", help="Column whose equal values (clip, patient, product) stay on one side.", show_default=False
    ),
]
Split = Annotated[
    SplitChoice | None,
    typer.Option(
        "--split",
        help="With --data: which of its examples, as training divides them; by default all.",
        show_default=False,
    ),
]

IncludeSeen = Annotated[bool, typer.Option("--include-seen", help="Count images that an adapter was trained on, too.")]


def read_asked_data(
    data: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    columns: str | None = None,
    streaming: bool = False,
    skip_bad_rows: bool = False,
    held_out: float | None = None,
    group_by: str | None = None,
    *,
    purpose: Purpose = "train",
) -> "DataSplits | None":
    """The examples that the options name, None without ``--data``.

    Args:
        data: As all up to ``group_by``, the option of that name.
        images: See there.
        annotations: See there.
        columns: See there.
        streaming: See there.
        skip_bad_rows: See there.
        held_out: See there.
        group_by: See there.
        purpose: To train, or to inspect what would be trained on, there must be something to train on and something to
            validate on; to evaluate one row is enough, in whichever part it is.

    Rows that are left out are listed by whoever knows which rows fit the base, too; see ``list_left_out``.

    Raises:
        UsageError: ``--columns`` is not of the form ``field=column,...``, or an option is given without ``--data``.
        DataError: The data are malformed.
        PathError: A file or folder cannot be read.
    """
    from lorax_vlm.data.readers.gathering import SourceKeywords
    from lorax_vlm.data.sources import read_parts
    from lorax_vlm.data.splitting import DEFAULT_HELD_OUT

    if data is None:
        require_no_data_options(
            images=images,
            annotations=annotations,
            columns=columns,
            streaming=streaming,
            skip_bad_rows=skip_bad_rows,
            held_out=held_out,
            group_by=group_by,
        )
        return None
    with _progress_bar() as bar:
        options = SourceKeywords(
            images=images,
            annotations=annotations,
            columns=_named(columns),
            streaming=streaming,
            skip_bad_rows=skip_bad_rows,
            held_out=DEFAULT_HELD_OUT if held_out is None else held_out,
            group_by=group_by,
            progress=bar,
        )
        splits = read_parts(data, **options)
    return splits if purpose == "evaluate" else splits.require_trainable()


def list_left_out(splits: "DataSplits") -> "DataSplits":
    """The same with a note which file of ``settings.left_out_dir`` lists the rows that were left out, if there are any.

    Where no file can be written, the note says so.
    """
    if not splits.left_out:
        return splits
    try:
        written = splits.write_left_out(left_out_dir() / f"{splits.label}.jsonl")
        note = f"the rows that are left out are listed in {written}"
    except PathError as error:
        note = f"the rows that are left out are listed nowhere: {error}"
    return replace(splits, notes=(*splits.notes, note))


@contextmanager
def _progress_bar() -> Iterator["Progress | None"]:
    """Something that is told how many images have been looked at; None where nobody would see it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Looking at images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def read_columns(columns: str | None) -> "data_columns.Columns":
    """What ``--columns`` says of the columns of a table.

    Raises:
        UsageError: It is not of the form ``field=column,...``.
        DataError: It names an unknown field.
    """
    from lorax_vlm.data.readers.columns import Columns as Named

    return Named(_named(columns))


def _named(columns: str | None) -> dict[str, str]:
    pairs = [] if columns is None else [pair.partition("=") for pair in columns.split(",")]
    if not all(field.strip() and equals and column.strip() for field, equals, column in pairs):
        raise UsageError(f"--columns must look like image=img,question=q,answer=a, got {columns!r}.")
    named = {field.strip(): column.strip() for field, _, column in pairs}
    if len(named) < len(pairs):
        raise UsageError(f"--columns names a field twice: {columns!r}.")
    return named


def require_no_data_options(**options: object) -> None:
    """Raise ``UsageError`` if any of the options that say something about ``--data`` was given."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False)]
    if given:
        raise UsageError(f"{', '.join(given)} says something about --data, which is not given.")


def base_options(
    store: Path | None, device: str, dtype: str, quantize: str, image_tokens: int | None
) -> dict[str, Any]:
    """What a workspace is told of its store and its bases."""
    return {"store": store, "device": device, "dtype": dtype, "quantize": quantize, "image_tokens": image_tokens}
