"""``lorax-vlm scenes``: the miniature world as files, to try everything on. No torch."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lorax_vlm.cli.output import console
from lorax_vlm.errors import PathError, UsageError

app = typer.Typer(help="The drawn scenes of the miniature world.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def scenes() -> None:
    """The drawn scenes of the miniature world."""


@app.command("export")
def export_scenes(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    style: Annotated[str, typer.Option(help="plain, detailed, concise or creative.")] = "plain",
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 50,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
) -> None:
    """Write scenes as PNG files with a metadata.jsonl: a data set for ``lorax-vlm train --data``."""
    from lorax_vlm.data.scene_captions import require_style
    from lorax_vlm.data.scenes import iterate_scenes

    require_style(style)
    if folder.exists() and not (folder.is_dir() and _is_empty(folder)):
        raise UsageError(f"{folder} is not an empty folder; nothing was written.")
    rows = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for scene in iterate_scenes(split, count):
            name = f"scene-{scene.seed}.png"
            scene.image.save(folder / name)
            rows.append(json.dumps({"file_name": name, "caption": scene.caption(style)}))
        (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    except OSError as error:
        raise PathError.of(error.filename or folder, error) from error
    console.print(f"Wrote {count} scenes with {style} captions to {folder}", highlight=False)


def _is_empty(folder: Path) -> bool:
    try:
        return not any(folder.iterdir())
    except OSError as error:
        raise PathError.of(folder, error) from error
