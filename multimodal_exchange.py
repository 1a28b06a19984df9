"""Adapters across models: train two, exchange them, move one to a third model, merge, and report where they belong.

    python multimodal_exchange.py
    python multimodal_exchange.py --models hub --data my_data --unlabelled my_photos

Without arguments everything is the shipped miniatures and their drawn scenes. On real checkpoints ``--data`` holds one
folder per task (``my_data/captioning/metadata.jsonl``, ``my_data/complex_reasoning/...``), and ``--unlabelled`` images
for the models to learn from each other's answers.
"""

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console

from lorax_vlm import LoraxError, MultiModalLoRAExchange, load_image, make_scene

WANTED = {"captioning": ("blip2_flan", "image_caption"), "complex_reasoning": ("blip2_opt", "reasoning")}


def main() -> None:
    """The whole story."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mini", choices=("mini", "hub"), help="which checkpoints the keys mean")
    parser.add_argument("--data", type=Path, help="folder with one folder of examples per task")
    parser.add_argument("--unlabelled", type=Path, help="folder of images without labels")
    parser.add_argument("--image", help="path or URL; by default a drawn scene nobody was trained on")
    parser.add_argument("--complexity", default="medium", choices=("light", "medium", "heavy"))
    parser.add_argument("--steps", type=int, help="training steps per adapter, and of what they teach each other")
    parser.add_argument("--store", type=Path, help="adapter store, by default that of lorax-vlm")
    parser.add_argument("--out", type=Path, default=Path("runs/exchange.html"), help="report")
    arguments = parser.parse_args()
    console, start = Console(markup=False, highlight=False, soft_wrap=True), time.monotonic()
    system = MultiModalLoRAExchange(arguments.models, store=arguments.store)
    image = load_image(arguments.image or make_scene(2_000_000_131).image)

    made = ["both", *(part for _, name in WANTED.values() for part in (name, f"{name}.copy"))]
    system.store.claim([f"{system.entry(model).name}.{name}" for model in system.models for name in made])

    def show(title: str, lines: list[str]) -> None:
        console.print(f"\n{time.monotonic() - start:4.0f} s  {title}", *lines, sep="\n")

    keys, config = [], None if arguments.steps is None else {"max_steps": arguments.steps}
    for task, (model, name) in WANTED.items():
        data = arguments.data and arguments.data / task
        keys += [system.create_adapter(model, name, task, arguments.complexity, data=data, config=config, replace=True)]
    captioner, reasoner = keys
    measured = [system.evaluate_adapter(key, count=200) for key in (captioner, reasoner) if arguments.data is None]
    said = dict(system.generate_with_adapter(captioner, image, compare=True))  # type: ignore[arg-type]
    show("Two adapters of two models", [*(r.line() for r in measured), *(f"{n}: {text}" for n, text in said.items())])

    bundle = arguments.out.parent / f"{captioner}.lorax"
    bundle.unlink(missing_ok=True)
    system.save_adapter(captioner, bundle)
    again = system.load_adapter(bundle, f"{captioner}.copy", replace=True)
    show("Saved as one file, and loaded again", [f"{bundle}: {bundle.stat().st_size:,} bytes, loaded as {again}"])

    moving = {"unlabelled": arguments.unlabelled, "steps": arguments.steps, "replace": True}
    exchange = system.exchange_adapters(captioner, reasoner, **moving)
    show("Exchanged: each moved to the other's model, or neither", exchange.lines())
    moved = system.cross_model_adapter_transfer(reasoner, "vilt", **moving)
    show("One moved to a model that only chooses among answers", moved.lines())
    if exchange.accepted:
        captions = exchange.adapters[system.entry("blip2_opt").name]
        merged, merge = system.merge_adapters([reasoner, captions], "both", replace=True)
        show("Merged: two skills on one model", [*merge.preview.lines(), f"{merged}: error {merge.error:.1e}"])
    show("Which adapter belongs to which model?", system.compatibility_matrix().lines())
    page = system.write_report(arguments.out, [exchange.there, exchange.back, moved], measured)
    show(f"Wrote {page}", [])


if __name__ == "__main__":
    try:
        main()
    except LoraxError as error:  # anything else is a bug, and shows as one
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing half-made was stored.")
