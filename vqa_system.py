"""Teach vision-language models to count and to reason, and compare models and adapters on the same questions.

    python vqa_system.py
    python vqa_system.py --models hub --model blip2_flan --image photo.jpg --question "How many dogs are there?"

Without arguments everything is the shipped miniatures and their drawn scenes. On real checkpoints ``--data`` holds one
folder per task: ``my_questions/counting/metadata.jsonl`` and so on.
"""

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lorax_vlm import LoraxError, VQASystem, load_image, make_scene

MODELS = ("blip2_opt", "blip2_flan", "instructblip", "vilt")
DEMO_TASKS = {"blip2_opt": ("counting", "reasoning"), "vilt": ("counting",)}
ASKED = ["How many squares are there?", "Is the yellow square right of the blue square?"]


def main() -> None:
    """Train, ask, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mini", choices=("mini", "hub"), help="which checkpoints the keys mean")
    parser.add_argument("--model", nargs="+", choices=MODELS, help="which of them; by default all")
    parser.add_argument("--tasks", nargs="+", help="adapters to train on every model; by default three on two of them")
    parser.add_argument("--image", help="path or URL; by default a drawn scene nobody was trained on")
    parser.add_argument("--question", action="append", help="question about it; repeat for more")
    parser.add_argument("--data", type=Path, help="folder with one question folder per task")
    parser.add_argument("--steps", type=int, help="training steps per adapter")
    parser.add_argument("--questions", type=int, default=150, help="held-out questions per comparison")
    parser.add_argument("--store", type=Path, help="adapter store, by default that of lorax-vlm")
    arguments = parser.parse_args()
    console, start = Console(markup=False), time.monotonic()
    system = VQASystem(arguments.models, store=arguments.store)
    image, questions = load_image(arguments.image or make_scene(2_000_000_131).image), arguments.question or ASKED
    tasks = {model: tuple(arguments.tasks or DEMO_TASKS.get(model, ())) for model in arguments.model or MODELS}
    system.store.claim([f"{system.entry(model).name}.{name}" for model in tasks for name in tasks[model]])
    for model, names in tasks.items():
        if names:
            config = {"max_steps": arguments.steps} if arguments.steps else None
            data = {task: arguments.data / task for task in names} if arguments.data else None
            system.train_adapters(model, dict(zip(names, names, strict=True)), data=data, config=config, replace=True)

    table = Table("model", "adapter", *questions, title=f"\n{arguments.image or 'a drawn scene'}", title_justify="left")
    for model, names in tasks.items():
        for name in (None, *names):
            answers = system.answer_questions([image] * len(questions), questions, model, name)
            table.add_row(system.entry(model).name, name or "-", *map(str, answers))
    console.print(table)

    if arguments.models == "mini":
        examples = system.test_questions("general", arguments.questions)
        rows = system.benchmark_models(
            [example.open_image() for example in examples],
            [example.question for example in examples],
            answers=[example.target for example in examples],
            kinds=[example.kind for example in examples],
            models=list(tasks),
            adapters=tasks,
        )
        for row in rows:
            kinds = (f"  {kind} {share:4.0%}" for kind, share in sorted(row.by_kind.items()))
            print(f"{row.model:<18}{row.adapter or '-':<15}{row.latency_p50_s * 1000:5.0f} ms", *kinds)
    print(f"Done after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except LoraxError as error:  # anything else is a bug, and shows as one
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing half-trained was stored.")
