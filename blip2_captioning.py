"""Train three captioning styles as LoRA adapters on one BLIP-2, then compare them on one image.

    python blip2_captioning.py
    python blip2_captioning.py --model Salesforce/blip2-opt-2.7b --image photo.jpg --data my_captions

Without arguments everything is the shipped miniature and its drawn scenes. With a real checkpoint, ``--data`` holds
one folder per style: ``my_captions/detailed/metadata.jsonl`` and so on.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lorax_vlm import BLIP2CaptioningSystem, LoraxError, draw_comparison_sheet, load_image, make_scene, score_caption

DEFAULT = "blip2-opt-mini"
STYLES = ("detailed", "concise", "creative")
DEMO_SCENE = 2_000_000_131


def main() -> None:
    """Train, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT, help="catalogue name, hub id or folder")
    parser.add_argument("--image", help="path or URL; without it a drawn scene nobody was trained on")
    parser.add_argument("--data", type=Path, help="folder with one captioned image folder per style")
    parser.add_argument("--styles", nargs="+", default=STYLES, choices=STYLES, help="which styles")
    parser.add_argument("--recipe", default="medium", choices=("light", "medium", "heavy"))
    parser.add_argument("--steps", type=int, help="training steps per style")
    parser.add_argument("--scenes", type=int, default=300, help="how many unseen scenes captions are judged on")
    parser.add_argument("--no-train", action="store_true", help="compare the adapters already stored")
    parser.add_argument("--store", type=Path, help="adapter store, by default that of lorax-vlm")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison.png"), help="comparison sheet")
    arguments = parser.parse_args()
    console, start = Console(markup=False), time.monotonic()

    system = BLIP2CaptioningSystem(arguments.model, store=arguments.store)
    scene = make_scene(DEMO_SCENE) if arguments.image is None else None
    image = load_image(arguments.image) if scene is None else scene.image
    base = "" if system.entry.name == DEFAULT else f"{system.entry.name}."  # a name belongs to one base
    names = {f"{base}{style}_captions": style for style in arguments.styles}
    if not arguments.no_train:
        system.store.claim(list(names))  # and so never replace what somebody made
        config = {"max_steps": arguments.steps} if arguments.steps else None
        data = {name: arguments.data / style for name, style in names.items()} if arguments.data else None
        system.train_adapters(names, data=data, complexity=arguments.recipe, config=config, replace=True)
    if system.entry.miniature:
        console.print(f"\n{arguments.scenes} unseen scenes: captions in style, and with every claim true")
        reports: list[Any] = system.evaluate_adapters(list(names), count=arguments.scenes)
        for report in reports:
            console.print(
                f"  {report.style:<9} {report.adapter or 'base':<18} in style {report.in_style:6.1%}  "
                f"true {report.true:6.1%}  both {report.in_style_and_true:6.1%}",
                highlight=False,
            )

    captions = system.compare_captioning_styles(image, list(names))
    table = Table("adapter", "caption", title=f"\n{arguments.image or 'a drawn scene'}", title_justify="left")
    for name, caption in captions.items():
        table.add_row(name, caption)
    console.print(table)
    scores = {n: score_caption(scene, names.get(n, "plain"), c) for n, c in captions.items()} if scene else None
    sheet = draw_comparison_sheet(image, captions, arguments.out, scores=scores, title=system.entry.name)
    console.print(f"Wrote {sheet} after {time.monotonic() - start:.0f} s", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except LoraxError as error:  # anything else is a bug, and shows as one
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing half-trained was stored.")
