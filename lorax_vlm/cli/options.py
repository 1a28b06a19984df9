"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from lorax_vlm.models import placement

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
    Path | None,
    typer.Option("--data", help="Folder with metadata.jsonl; without it the miniature scenes.", show_default=False),
]
