"""Your own questions, worked through on a published set that nobody here drew: ``easy-vqa`` 1.0 of PyPI.

    pip install easy-vqa==1.0                                # 3 MB, MIT licence; in requirements_dev.txt
    python -m benchmarks.easy_vqa                            # all four miniatures: about an hour on two cores
    python -m benchmarks.easy_vqa --model blip2-opt-mini
    python -m benchmarks.easy_vqa --model blip2-opt-mini --curve

Small coloured shapes: 4,000 images of 64 pixels with 38,575 questions to train on, 1,000 with 9,673 to be tested on, 13
answers. The set is written as a folder such as you would have, ``train/`` and ``test/`` with a ``metadata.jsonl`` each,
then read and trained on as ``lorax-vlm train shapes --task shapes --data FOLDER`` does when nothing else is said. A
tenth of the training images is held out to validate with; the test part is asked once, at the end, of the base and of
the adapter. An answer is right when it is exactly the set's.

``--curve`` trains one model on several groups of sites for several numbers of steps, each run with a schedule of its
own, and prints one row each. It is tested on the first 2,000 test questions.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.options import parse
from lorax_vlm import VQASystem
from lorax_vlm.adapters.recipe import Recipe, change_recipe
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.sources import read_data
from lorax_vlm.evaluation.results import VQAReport
from lorax_vlm.models.catalog import MINIATURE_KEYS
from lorax_vlm.skills import answer as answer_skill
from lorax_vlm.training.defaults import question_config, skill_recipe
from lorax_vlm.types import Interval

PACKAGE, VERSION = "easy-vqa", "1.0"
NAME = "shapes"
SHAPES = ("circle", "rectangle", "triangle")
CURVE_SITES = ("lm", "projection", "vision,qformer,projection", "vision,qformer,projection,lm")
CURVE_STEPS = (100, 400)
CURVE_QUESTIONS = 2000


class Limits(NamedTuple):
    """Less than everything, for a quick look: 0 is all."""

    steps: int = 0
    images: int = 0
    questions: int = 0


class Trained(NamedTuple):
    """What a run took."""

    minutes: float
    core_minutes: float
    """Much the same on any load: what one core would have needed alone."""
    best_step: int

    def __str__(self) -> str:
        return f"{self.minutes:.1f} minutes ({self.core_minutes:.1f} of one core)"


def answer_group(answer: str) -> str:
    """What an answer is about: the groups in which accuracy is given."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "shape" if answer in SHAPES else "colour"


def write_part(texts: Sequence[str], answers: Sequence[str], images: Sequence[str], folder: Path) -> None:
    """Write questions as a folder that any reader of this project takes: copies of the images, and ``metadata.jsonl``.

    Args:
        texts: The questions.
        answers: One for each.
        images: Path of each question's image.
        folder: Is made.
    """
    folder.mkdir(parents=True)
    rows = []
    for text, answer, image in zip(texts, answers, images, strict=True):
        name = Path(image).name
        if not (folder / name).exists():
            shutil.copyfile(image, folder / name)
        rows.append({"file_name": name, "question": text, "answer": answer, "type": answer_group(answer)})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")


def write_set(folder: Path, images: int = 0) -> None:
    """Write the installed set as ``train/`` and ``test/``.

    Args:
        folder: Where to.
        images: Of each part so many images at most; 0 is all.

    Raises:
        SystemExit: The package is not installed, or has another version.
    """
    try:
        found = importlib.metadata.version(PACKAGE)
        import easy_vqa
    except ImportError:
        raise SystemExit(f"The set is not installed: pip install {PACKAGE}=={VERSION}") from None
    if found != VERSION:
        raise SystemExit(f"{PACKAGE} is {found}; the figures are those of {VERSION}: pip install {PACKAGE}=={VERSION}")
    parts = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    for part, ((texts, answers, numbers), paths) in parts.items():
        kept = set(sorted(paths)[: images or None])
        rows = [
            (text, answer, paths[number])
            for text, answer, number in zip(texts, answers, numbers, strict=True)
            if number in kept
        ]
        write_part([t for t, _, _ in rows], [a for _, a, _ in rows], [path for _, _, path in rows], folder / part)


def train(system: VQASystem, model: str, data: DataSplits, recipe: Recipe | None = None, steps: int = 0) -> Trained:
    """Train on the set with the defaults for somebody's own questions, or on other sites and for other steps."""
    config = system.default_config(model, own_data=True)
    config = config.with_steps(steps) if steps else config
    start, computing = time.monotonic(), time.process_time()
    stored = system.train_adapter(
        model, NAME, NAME, data=data, complexity=recipe, config=config, replace=True, progress=sys.stderr.isatty()
    )
    seconds, core_seconds = time.monotonic() - start, time.process_time() - computing
    return Trained(seconds / 60, core_seconds / 60, stored.manifest.training["best_step"])


def describe(model: str, system: VQASystem) -> str:
    """The settings of a run, for people."""
    entry = system.entry(model)
    recipe, config = skill_recipe(entry, answer_skill(NAME), own_data=True), question_config(entry, own_data=True)
    shown = dataclasses.asdict(config)
    kept = ("max_steps", "batch_size", "learning_rate", "rows_per_image", "eval_every", "patience")
    return f"recipe {recipe.name} (rank {recipe.rank}), " + ", ".join(f"{key} {shown[key]}" for key in kept)


def share(interval: Interval) -> str:
    """An interval in per cent, two decimals: near 100 % one says little."""
    return f"{interval.value:.2%} ({interval.low:.2%} to {interval.high:.2%})"


def print_report(report: VQAReport) -> None:
    """Accuracy in total and by group of answers, with 95 % intervals."""
    who = report.adapter or "base"
    print(f"  {who:<8}{report.count:>6} questions  {share(report.accuracy)}", flush=True)
    for kind, interval in sorted(report.by_kind.items()):
        print(f"    {kind:<8}{interval.count:>4} questions  {share(interval)}", flush=True)


def measure(model: str, data: DataSplits, questions: Sequence[Example], limits: Limits, home: Path) -> None:
    """One model from the folder to its figures."""
    system = VQASystem("mini", store=home / "store", batch_size=128)
    print(f"{model}: {describe(model, system)}", flush=True)
    print_report(system.evaluate(model, examples=questions))
    trained = train(system, model, data, steps=limits.steps)
    print(f"  trained in {trained}, the best at step {trained.best_step}", flush=True)
    print_report(system.evaluate(model, NAME, examples=questions))


def draw_curve(model: str, data: DataSplits, questions: Sequence[Example], limits: Limits, home: Path) -> None:
    """One model on several groups of sites, for several numbers of steps."""
    system = VQASystem("mini", store=home / "store", batch_size=128)
    usual = skill_recipe(system.entry(model), answer_skill(NAME), own_data=True)
    print(
        f"{model}: {describe(model, system)}\n\n| sites | steps | right | minutes of one core |\n|---|---|---|---|",
        flush=True,
    )
    for sites in CURVE_SITES:
        for steps in (limits.steps,) if limits.steps else CURVE_STEPS:
            trained = train(system, model, data, change_recipe(usual, sites=[sites]), steps)
            report = system.evaluate(model, NAME, examples=questions)
            print(f"| {sites} | {steps} | {share(report.accuracy)} | {trained.core_minutes:.1f} |", flush=True)


def main() -> None:
    """From the installed package to figures."""
    models = tuple(MINIATURE_KEYS.values())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=models, choices=models, help="by default all")
    parser.add_argument("--curve", action="store_true", help="accuracy by sites and steps instead")
    parser.add_argument("--steps", type=int, default=0, help="other than the default; a quick look")
    parser.add_argument("--images", type=int, default=0, help="of each part so many at most; a quick look")
    parser.add_argument("--questions", type=int, default=0, help="test with so many at most; a quick look")
    arguments = parse(parser, model=["vilt-mini"], steps=2, images=20, questions=10)
    limits = Limits(arguments.steps, arguments.images, arguments.questions)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LORAX_VLM_HOME"] = scratch  # nothing is left behind
        write_set(Path(scratch) / "easy-vqa", limits.images)
        data = read_data(Path(scratch) / "easy-vqa")
        print(data.summary(), flush=True)
        questions = data.test[: limits.questions or (CURVE_QUESTIONS if arguments.curve else None)]
        for model in arguments.model:
            (draw_curve if arguments.curve else measure)(model, data, questions, limits, Path(scratch))


if __name__ == "__main__":
    main()
