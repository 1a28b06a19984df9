"""Thousands of adapters known, a budget for a few, traffic from several threads: right answers, bounded memory.

    python -m benchmarks.residency                       # 2,000 adapters, budget for 50, 10,000 requests

Every request is a batch of four questions to randomly chosen adapters (a few are popular) or to the plain base of
``blip2-opt-mini``. Its answers are compared with those that each adapter gave alone before. Printed: wrong answers, the
most memory adapters took against the budget, and the size of the process as the requests go on.
"""

import argparse
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from benchmarks.options import parse
from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.models.loading import load_model
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.types import GenerationSettings

QUESTION = "Question: How many shapes are there? Short answer:"
ROWS = 4


def write_adapters(base_name: str, family: str, shapes: dict[str, tuple[int, int]], folder: Path, count: int) -> None:
    """Adapters with random factors, large enough to change answers."""
    recipe = get_recipe("light")
    sites = sorted(recipe.sites(family, shapes))
    config = LoraConfig(
        r=recipe.rank, lora_alpha=8, target_modules=recipe.pattern(family), base_model_name_or_path=base_name
    )
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        weights = {}
        for site in sites:
            width_out, width_in = shapes[site]
            weights[f"base_model.model.{site}.lora_A.weight"] = torch.randn(recipe.rank, width_in, generator=generator)
            weights[f"base_model.model.{site}.lora_B.weight"] = torch.randn(width_out, recipe.rank, generator=generator)
        path = folder / f"a{index}"
        config.save_pretrained(str(path))
        save_file({key: 0.2 * value for key, value in weights.items()}, path / "adapter_model.safetensors")


class Traffic:
    """Random requests by several threads, and what was seen of them."""

    def __init__(self, attached: AttachedAdapters, adapters: int, requests: int) -> None:
        self._attached, self._adapters, self._requests = attached, adapters, requests
        self._picture = make_scene(1).image
        self._lock, self._process = threading.Lock(), psutil.Process(os.getpid())
        self.expected: dict[str | None, str] = {}
        self.done = self.wrong = self.most_bytes = 0
        self.sizes_mib: list[int] = []

    def ask(self, rows: list[str | None]) -> list[str]:
        """One batch, a row per adapter."""
        settings = GenerationSettings(max_new_tokens=3, num_beams=1)
        found = self._attached.generate(rows, [self._picture] * ROWS, [QUESTION] * ROWS, settings)
        return [text.text for text in found]

    def ask_each_alone(self) -> None:
        """What every adapter answers in a batch of its own."""
        for name in (None, *(f"a{index}" for index in range(self._adapters))):
            self.expected[name] = self.ask([name] * ROWS)[0]

    def run(self, threads: int) -> None:
        """All requests."""
        workers = [threading.Thread(target=self._work, args=(seed,)) for seed in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _work(self, seed: int) -> None:
        rng = random.Random(seed)
        while self._next():
            rows = [self._choose(rng) for _ in range(ROWS)]
            answers = self.ask(rows)
            with self._lock:
                self.most_bytes = max(self.most_bytes, self._attached.used_bytes)
                self.wrong += sum(answer != self.expected[name] for name, answer in zip(rows, answers, strict=True))

    def _next(self) -> bool:
        with self._lock:
            if self.done >= self._requests:
                return False
            self.done += 1
            if self.done % max(1, self._requests // 10) == 0:
                self.sizes_mib.append(round(self._process.memory_info().rss / 2**20))
            return True

    def _choose(self, rng: random.Random) -> str | None:
        if rng.random() < 0.1:
            return None
        return f"a{rng.randrange(min(20, self._adapters) if rng.random() < 0.5 else self._adapters)}"


def main() -> None:
    """Run the traffic and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--budget", type=int, default=50, help="adapters that fit into memory")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    arguments = parse(parser, adapters=12, budget=4, requests=40, threads=2)
    torch.set_num_threads(1)
    base = load_model("blip2-opt-mini")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_adapters(base.name, base.family.name, dict(base.description.linear_shapes), folder, arguments.adapters)
        one = AttachedAdapters(base)
        budget = arguments.budget * one.attach("a0", folder / "a0").weights.nbytes
        one.detach_all()
        attached = AttachedAdapters(base, lambda name: folder / name, budget)
        traffic = Traffic(attached, arguments.adapters, arguments.requests)
        start = time.monotonic()
        traffic.ask_each_alone()
        different = len(set(traffic.expected.values()))
        print(f"{len(traffic.expected)} oracles after {time.monotonic() - start:.0f} s, {different} different answers")
        start = time.monotonic()
        traffic.run(arguments.threads)
    elapsed = time.monotonic() - start
    print(f"{traffic.done} requests of {ROWS} rows by {arguments.threads} threads in {elapsed:.0f} s")
    print(f"wrong answers: {traffic.wrong}")
    print(f"adapters took at most {traffic.most_bytes:,} of {budget:,} bytes")
    print(f"process memory after each tenth, MiB: {traffic.sizes_mib}")


if __name__ == "__main__":
    main()
