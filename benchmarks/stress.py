"""Six threads answer on one base while a seventh trains, stores, replaces, removes and merges; every answer is checked.

    python -m benchmarks.stress                       # 60 s on blip2-opt-mini
    python -m benchmarks.stress --model vilt-mini --seconds 20

An answer must be the one that the same row got alone, before anything else ran; of an adapter that is replaced
meanwhile, the one of any of its versions; of one that is removed, that or "not found". A merge must have the weights of
its own pair.
"""

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.options import parse
from lorax_vlm.adapters.factors import read_updates
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import AdapterNotFound, LoraxError
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.skills import answer as answers
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.types import Answer
from lorax_vlm.vqa import VQASystem
from tests.adapters_for_tests import write_manifest, write_random_adapter

QUESTIONS = ("How many shapes are there?", "What color is the background?", "Is there a red circle?")
SHORT = TrainConfig(max_steps=6, batch_size=8, learning_rate=1e-3, eval_every=3, patience=None)
_TOLERANCE = 1e-5


@dataclass
class Tally:
    """What the threads saw."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def judge(self, what: str, said: object, expected: set[str]) -> None:
        """Count an answer."""
        with self.lock:
            if what == "passing" and isinstance(said, AdapterNotFound):
                self.right["not there at the moment"] += 1
            elif isinstance(said, Answer) and str(said) in expected:
                self.right[what] += 1
            else:
                self.wrong.append(f"{what}: {said!r}, expected one of {sorted(expected)}")


class Stage:
    """One base, a store, images, and what each adapter version answers to them alone."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.system = VQASystem("mini", store=folder / "store")
        self.exchange = MultiModalLoRAExchange(workspace=self.system.workspace)  # one base for both
        self.base = self.system.base(model)
        self.pictures = [scene.image for scene in iterate_scenes("test", 24)]
        looking = "qformer" if self.base.entry.captions else "lm-mlp"
        recipes = [
            Recipe("lm", 4, ("lm-qv",)),
            Recipe("mlp", 8, ("lm-attention", "lm-mlp")),
            Recipe("l", 2, (looking,)),
        ]
        self.versions = {
            name: [self._folder(f"{name}-{number}", recipe, 10 * seed + number) for number in range(count)]
            for seed, (name, recipe, count) in enumerate(
                zip(("steady", "broad", "looking", "changing", "passing"), [*recipes, recipes[0], recipes[1]],
                    (1, 1, 1, 2, 1), strict=True)
            )
        }  # fmt: skip
        self.expected: dict[str | None, list[list[str]]] = {None: [self._alone(None)]}
        for name, folders in self.versions.items():
            self.expected[name] = []
            for number in range(len(folders)):
                self.put(name, number)
                self.expected[name].append(self._alone(name))

    def _folder(self, name: str, recipe: Recipe, seed: int) -> Path:
        folder = write_random_adapter(self.base, self.folder / name, recipe, seed=seed, scale=0.5)
        prompt = self.base.entry.question_template
        write_manifest(self.base, folder, skill=answers("counting"), prompt=prompt)
        return folder

    def put(self, name: str, number: int) -> None:
        """Make a version the one in use."""
        key = f"{self.base.entry.name}.{name}"
        self.exchange.load_adapter(self.versions[name][number], key, model=self.model, replace=True)

    def _alone(self, name: str | None) -> list[str]:
        asked = list(itertools.product(self.pictures, QUESTIONS))
        return [str(self.system.answer_question(p.copy(), q, self.model, name)) for p, q in asked]

    def answers(self, name: str | None, picture: int, question: int) -> set[str]:
        """What is right."""
        row = picture * len(QUESTIONS) + question
        return {version[row] for version in self.expected[name]}


def answer(stage: Stage, tally: Tally, names: Sequence[str | None], seed: int, ended: threading.Event) -> None:
    """Ask about pictures of one's own, in batches of any adapters among ``names``."""
    rng = random.Random(seed)
    while not ended.is_set():
        rows = [
            (rng.choice(names), rng.randrange(len(stage.pictures)), rng.randrange(len(QUESTIONS)))
            for _ in range(rng.randint(1, 6))
        ]
        pictures = [stage.pictures[picture].copy() for _, picture, _ in rows]
        questions = [QUESTIONS[question] for _, _, question in rows]
        try:
            said = stage.system.answer_questions(
                pictures, questions, stage.model, [name for name, *_ in rows], return_errors=True
            )
        except AdapterNotFound:
            if "passing" not in names:
                raise
            with tally.lock:
                tally.right["not there at the moment"] += 1
            continue
        for (name, picture, question), text in zip(rows, said, strict=True):
            tally.judge(name or "plain", text, stage.answers(name, picture, question))


def work(stage: Stage, tally: Tally, ended: threading.Event) -> None:
    """Train, store, replace, remove, merge, again and again."""
    rng, base = random.Random(99), stage.base
    groups = [("lm-qv",), ("lm-attention", "lm-mlp")] + ([("vision", "qformer")] if base.entry.captions else [])
    data = skill_splits(answers("counting"), 12, 6)
    store, name = stage.system.store, base.entry.name
    updates = {n: read_updates(store.read_bytes(f"{name}.{n}")[1]) for n in ("steady", "broad", "looking")}
    for number in itertools.count():
        if ended.is_set():
            return
        recipe = Recipe("trained", 4, rng.choice(groups))
        if number % 4 == 3:  # together
            orders = [
                stage.system.order(stage.model, f"t{i}", "counting", data=data, complexity=recipe, config=SHORT)
                for i in range(2)
            ]
            stage.system.train_orders(stage.model, orders, replace=True, progress=False)
        else:
            stage.system.train_adapter(
                stage.model, "trained", "counting", data=data, complexity=recipe, config=SHORT, replace=True,
                progress=False,
            )  # fmt: skip
        stage.put("changing", number % 2)
        store.remove(f"{name}.passing")
        stage.put("passing", 0)
        first, second = rng.sample(sorted(updates), 2)
        key, _ = stage.exchange.merge_adapters([f"{name}.{first}", f"{name}.{second}"], "merged", replace=True)
        merged = read_updates(store.read_bytes(key)[1])
        for site in {*updates[first], *updates[second]}:
            whole = sum(u[site].b @ u[site].a for u in (updates[first], updates[second]) if site in u)
            found = merged[site].b @ merged[site].a
            if not np.allclose(found, whole, atol=_TOLERANCE * float(np.abs(whole).max())):
                tally.wrong.append(f"merge of {first} and {second}: {site} is not their sum")
        with tally.lock:
            tally.right["rounds of training, storing, replacing, removing, merging"] += 1


def stress(model: str, seconds: float) -> Tally:
    """Let the threads run for some time.

    Raises:
        RuntimeError: A thread failed.
    """
    torch.set_num_threads(1)
    tally, ended = Tally(), threading.Event()
    with tempfile.TemporaryDirectory() as scratch:
        stage = Stage(model, Path(scratch))

        def guarded(run: Callable[[], None]) -> Callable[[], None]:
            def call() -> None:
                try:
                    run()
                except (Exception, LoraxError) as error:
                    tally.failures.append(error)
                    ended.set()

            return call

        asked: list[list[str | None]] = [
            [None], ["steady"], ["broad", None], ["looking", "steady", None], ["changing", None], ["passing", "broad"]
        ]  # fmt: skip
        jobs = [
            guarded(lambda names=names, seed=seed: answer(stage, tally, names, seed, ended))  # type: ignore[misc]
            for seed, names in enumerate(asked)
        ]
        threads = [threading.Thread(target=job) for job in [*jobs, guarded(lambda: work(stage, tally, ended))]]
        for thread in threads:
            thread.start()
        ended.wait(seconds)
        ended.set()
        for thread in threads:
            thread.join()
    if tally.failures:
        raise RuntimeError("a thread failed") from tally.failures[0]
    return tally


def main() -> int:
    """Run it; exit code 1 when any answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="blip2-opt-mini", help="a miniature")
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parse(parser, seconds=3.0)
    began = time.monotonic()
    tally = stress(arguments.model, arguments.seconds)
    for line in tally.wrong[:10]:
        print(line)
    for what, count in tally.right.most_common():
        print(f"{count:8,} {what}")
    print(
        f"{arguments.model}: {sum(tally.right.values()):,} right, {len(tally.wrong)} wrong, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
