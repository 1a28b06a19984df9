"""How one batch's time grows: with the adapters in it, their rank, the rows, and the adapters that are known.

    python -m benchmarks.growth --plot docs/images/growth.png

The first three are a language model of OPT-125M's shape as in ``mixed_batch.py``: 24 new tokens, attention sites.
PEFT's mixed batch runs in turn with ours. The last is ``blip2-opt-mini``: the same batch of 16 questions to 8
adapters, while more and more others are in memory.
"""

import argparse
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import mixed_batch
from benchmarks.mixed_batch import PROMPT_TOKENS, generate, make_adapters, make_model, make_peft
from benchmarks.options import parse
from benchmarks.residency import QUESTION, write_adapters
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.models.loading import load_model
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.routed import RoutedLinear, routed
from lorax_vlm.types import GenerationSettings

Point = tuple[int, float, float]
"""What grows, our seconds, PEFT's seconds (or NaN)."""


def fastest(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Each way's fastest round, all in turn."""
    best = [float("inf")] * len(ways)
    for way in ways:
        way()
    for _ in range(rounds):
        for index, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def time_batch(rows: int, count: int, rank: int, rounds: int) -> tuple[float, float]:
    """Ours and PEFT's seconds for one mixed batch."""
    ours = make_model()
    adapters = make_adapters(ours, count, rank)
    for site in adapters[0].factors:
        ours.set_submodule(site, RoutedLinear(ours.get_submodule(site), site))
    peft = make_peft(adapters, rank)
    ids = torch.randint(10, 50_000, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(2))
    owners = [row % count for row in range(rows)]

    def mixed() -> object:
        with routed([adapters[owner] for owner in owners]):
            return generate(ours, ids)

    first, second = fastest([mixed, lambda: generate(peft, ids, adapter_names=[f"a{o}" for o in owners])], rounds)
    return first, second


def known_adapters(counts: list[int], rounds: int) -> Iterator[Point]:
    """A batch's seconds while ever more adapters are in memory."""
    base = load_model("blip2-opt-mini")
    settings = GenerationSettings(max_new_tokens=3, num_beams=1)
    picture, rows = make_scene(1).image, [f"a{row % 8}" for row in range(16)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_adapters(base.name, base.family.name, dict(base.description.linear_shapes), folder, max(counts))
        attached = AttachedAdapters(base)
        for count in counts:
            for index in range(len(attached.names), count):
                attached.attach(f"a{index}", folder / f"a{index}")
            (found,) = fastest(
                [lambda: attached.generate(rows, [picture] * len(rows), [QUESTION] * len(rows), settings)], rounds
            )
            yield count, found, float("nan")


def draw(sweeps: dict[str, list[Point]], path: Path) -> None:
    """One panel per sweep."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, points) in zip(figure.subplots(2, 2).flat, sweeps.items(), strict=False):
        x, ours, peft = zip(*points, strict=True)
        axes.plot(x, ours, marker="o", label="LoRAX")
        if not any(math.isnan(value) for value in peft):
            axes.plot(x, peft, marker="s", color="gray", label="PEFT, adapter_names")
        axes.set(title=title, xscale="log", ylabel="seconds per batch", ylim=(0, None))
        axes.set_xticks(x, [f"{value:,}" for value in x], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


@torch.inference_mode()
def main() -> None:
    """Run the sweeps, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--plot", type=Path, default=Path("build") / "growth.png")
    arguments = parse(parser, rounds=1)
    warnings.simplefilter("ignore")
    if arguments.smoke:
        mixed_batch.NEW_TOKENS = 2
    one = {"rows, up to 8 adapters, rank 8": [(rows, (rows, min(rows, 8), 8)) for rows in (1, 2)]}
    batches = (
        one
        if arguments.smoke
        else {
            "adapters in a batch of 64 rows, rank 8": [(count, (64, count, 8)) for count in (1, 2, 4, 8, 16, 32, 64)],
            "rank, 16 rows, 8 adapters": [(rank, (16, 8, rank)) for rank in (4, 8, 16, 32, 64)],
            "rows, up to 8 adapters, rank 8": [(rows, (rows, min(rows, 8), 8)) for rows in (1, 2, 4, 8, 16, 32, 64)],
        }
    )
    sweeps: dict[str, list[Point]] = {}
    for title, points in batches.items():
        print(f"{title}\n{'':>8} {'LoRAX':>9} {'PEFT':>9}")
        sweeps[title] = []
        for x, settings in points:
            ours, peft = time_batch(*settings, arguments.rounds)
            sweeps[title].append((x, ours, peft))
            print(f"{x:>8,} {ours:>7.2f} s {peft:>7.2f} s", flush=True)
    title = "adapters in memory, 16 rows to 8 of them (miniature)"
    print(title)
    sweeps[title] = []
    for point in known_adapters([8] if arguments.smoke else [8, 32, 128, 512, 2000], 10):
        sweeps[title].append(point)
        print(f"{point[0]:>8,} {point[1] * 1000:>7.1f} ms", flush=True)
    draw(sweeps, arguments.plot)
    print(f"Wrote {arguments.plot}")


if __name__ == "__main__":
    main()
