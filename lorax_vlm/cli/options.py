"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorax_vlm.errors import UsageError
from lorax_vlm.models import placement

if TYPE_CHECKING:
    from lorax_vlm.data.examples import DataSplits

DEFAULT_MODEL = "blip2-opt-mini"

Model = Annotated[str, typer.Option("--model", "-m", help="Catalogue name, hub id or folder of the base.")]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="Adapter store; by default the one of LORAX_VLM_HOME.", show_default=False),
]
Device = Annotated[placement.Device, typer.Option("--device", help="Where to compute.")]
Dtype = Annotated[placement.Precision, typer.Option("--dtype", help="Precision of the base.")]
Quantize = Annotated[placement.Quantization, typer.Option("--quantize", help="Quantisation of the language model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Folder with metadata.jsonl, VQAv2 or COCO JSON, or hub:owner/name; by default the miniature scenes.",
        show_default=False,
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="With a JSON file: the folder of its images.", show_default=False)
]
Annotations = Annotated[
    Path | None, typer.Option("--annotations", help="With VQAv2 questions: the file of answers.", show_default=False)
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns", help="With hub data: our fields by column, image=img,question=q,answer=a.", show_default=False
    ),
]
Streaming = Annotated[bool, typer.Option("--streaming", help="With hub data: read rows while training.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave malformed rows out.")]


def read_asked_data(
    data: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
    columns: str | None = None,
    streaming: bool = False,
    skip_bad_rows: bool = False,
) -> "DataSplits | None":
    """The examples that the options name, None without ``--data``.

    Raises:
        UsageError: ``--columns`` is not of the form ``field=column,...``.
        DataError: The data are malformed.
    """
    from lorax_vlm.data.sources import read_data

    if data is None:
        return None
    pairs = [pair.partition("=") for pair in (columns or "").split(",") if pair]
    if not all(field and equals and column for field, equals, column in pairs):
        raise UsageError(f"--columns must look like image=img,question=q,answer=a, got {columns!r}.")
    return read_data(
        data,
        images=images,
        annotations=annotations,
        columns={field.strip(): column.strip() for field, _, column in pairs},
        streaming=streaming,
        skip_bad_rows=skip_bad_rows,
    )
