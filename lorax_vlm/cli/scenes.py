"""``lorax-vlm scenes``: the miniature world as files, to try everything on. No torch."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorax_vlm.cli.output import say
from lorax_vlm.errors import UsageError
from lorax_vlm.paths import naming, require_empty_folder

if TYPE_CHECKING:
    from lorax_vlm.data.scenes import Scene

app = typer.Typer(help="The drawn scenes of the miniature world.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def scenes() -> None:
    """The drawn scenes of the miniature world."""


@app.command("export")
def export_scenes(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    style: Annotated[
        str | None,
        typer.Option(help="Captions: plain, detailed, concise or creative. Default: plain.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Questions and answers instead: general, counting, reasoning, ...", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 50,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
) -> None:
    """Write scenes as PNG files with a metadata.jsonl: a data set for ``lorax-vlm train --data``.

    With --task every question of that type is a row, and a scene that has none is left out.
    """
    from lorax_vlm.data.scenes import iterate_scenes
    from lorax_vlm.data.world.captions import require_style
    from lorax_vlm.data.world.examples import require_task

    if style is not None and task is not None:
        raise UsageError("Give --style for captions or --task for questions, not both.")
    rows_of = partial(_questions, require_task(task)) if task else partial(_caption, require_style(style or "plain"))
    scenes, lines, images = iterate_scenes(split, count), [], 0
    folder = require_empty_folder(folder)
    with naming(folder):
        for scene in scenes:
            name, rows = f"scene-{scene.seed}.png", rows_of(scene)
            lines += [json.dumps({"file_name": name, **row}) for row in rows]
            if rows:
                scene.image.save(folder / name)
                images += 1
        (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    what = f"{len(lines)} {task} questions" if task else f"{style or 'plain'} captions"
    say(f"Wrote {images} scenes with {what} to {folder}")


def _caption(style: str, scene: "Scene") -> list[dict[str, str]]:
    return [{"caption": scene.caption(style)}]


def _questions(task: str, scene: "Scene") -> list[dict[str, str]]:
    return [
        {"question": question, "answer": answer, "type": kind}
        for kind, question, answer in scene.questions()
        if task in (kind, "general")
    ]
