"""How often the 95 % intervals hold the true value, simulated.

    python -m benchmarks.coverage                 # about two minutes on one core
    python -m benchmarks.coverage --smoke         # a few seconds, too few runs to judge by

Drawn are samples of 20, 30, 100 and 1,000 whose true mean is known:

- *shares*: right or wrong. Coverage is not simulated but summed over every possible number of right answers.
- *vqa scores*: eleven values from 0 to 1; most questions are easy or hard.
- *differences*: two answerers on the same questions, right or wrong; they disagree on a share p of the questions, and
  seven of ten such questions go to the second.
- *vqa differences*: the same with eleven values each.
- *images*: as many images as the sample is large, one to a dozen questions about each; those of an image are alike.
- *image differences*: two answerers on such questions.

The last line is the smallest coverage of the table.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lorax_vlm.evaluation.intervals import mean_interval, paired_difference
from lorax_vlm.types import Interval

COUNTS = (20, 30, 100, 1000)
SHARES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
TO_THE_SECOND = 0.7
_SPREAD = 1.0  # how far questions, or images, are from being equally hard: less is further


class Drawn(NamedTuple):
    """An interval from one sample, and what it should hold."""

    interval: Interval
    truth: float

    @property
    def held(self) -> bool:
        """Whether it does."""
        return self.interval.low - 1e-6 <= self.truth <= self.interval.high + 1e-6


Draw = Callable[[np.random.Generator, int, float], Drawn]


def share_coverage(count: int, share: float) -> float:
    """Chance that the interval of a share holds it, over all numbers of right answers that can happen."""
    total = 0.0
    for right in range(count + 1):
        chance = _binomial(count, right, share)
        if chance > 1e-9:
            total += chance * Drawn(mean_interval([1.0] * right + [0.0] * (count - right)), share).held
    return total


def _binomial(count: int, right: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(right == share * count)
    ways = math.lgamma(count + 1) - math.lgamma(right + 1) - math.lgamma(count - right + 1)
    return math.exp(ways + right * math.log(share) + (count - right) * math.log(1 - share))


def _difficulties(rng: np.random.Generator, count: int, share: float) -> np.ndarray:
    if share in (0.0, 1.0):
        return np.full(count, share)
    return rng.beta(_SPREAD * share, _SPREAD * (1 - share), count)


def draw_vqa_scores(rng: np.random.Generator, count: int, share: float) -> Drawn:
    """Mean of scores with eleven values."""
    return Drawn(mean_interval(rng.binomial(10, _difficulties(rng, count, share)) / 10), share)


def draw_differences(rng: np.random.Generator, count: int, share: float) -> Drawn:
    """Difference of two answerers who are right or wrong."""
    disagree, second = rng.random(count) < share, rng.random(count) < TO_THE_SECOND
    both = rng.random(count) < 0.5
    interval = paired_difference(np.where(disagree, ~second, both), np.where(disagree, second, both))
    return Drawn(interval, share * (2 * TO_THE_SECOND - 1))


def draw_vqa_differences(rng: np.random.Generator, count: int, share: float) -> Drawn:
    """Difference of two answerers with scores of eleven values; the second is sometimes replaced by a better one."""
    hard = _difficulties(rng, count, 0.5)
    better = np.where(rng.random(count) < share, (1 + hard) / 2, hard)
    return Drawn(paired_difference(rng.binomial(10, hard) / 10, rng.binomial(10, better) / 10), share / 4)


def _questions(rng: np.random.Generator, images: int) -> np.ndarray:
    """The image of each question."""
    return np.repeat(np.arange(images), np.minimum(1 + rng.poisson(3, images), 12))


def draw_images(rng: np.random.Generator, count: int, share: float) -> Drawn:
    """Share of right answers to several questions about each image."""
    images = _questions(rng, count)
    right = rng.random(len(images)) < _difficulties(rng, count, share)[images]
    return Drawn(mean_interval(right, images.tolist()), share)


def draw_image_differences(rng: np.random.Generator, count: int, share: float) -> Drawn:
    """Difference of two answerers; on an image that they see differently all questions go to one of them, or most."""
    images = _questions(rng, count)
    disagree, second = rng.random(count) < share, rng.random(count) < TO_THE_SECOND
    won = (rng.random(len(images)) < np.where(second, 0.9, 0.1)[images]).astype(float)
    both = (rng.random(len(images)) < 0.5).astype(float)
    first = np.where(disagree[images], 1 - won, both)
    truth = share * (TO_THE_SECOND * 0.8 - (1 - TO_THE_SECOND) * 0.8)
    return Drawn(paired_difference(first, np.where(disagree[images], won, both), images.tolist()), truth)


KINDS: dict[str, Draw] = {
    "vqa scores": draw_vqa_scores,
    "differences": draw_differences,
    "vqa differences": draw_vqa_differences,
    "images": draw_images,
    "image differences": draw_image_differences,
}


def simulated_coverage(draw: Draw, count: int, share: float, runs: int, seed: int) -> float:
    """Share of runs whose interval holds the truth."""
    rng = np.random.default_rng([seed, count, round(1000 * share)])
    return sum(draw(rng, count, share).held for _ in range(runs)) / runs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1200, help="samples for each entry of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few samples, to see that it runs")
    arguments = parser.parse_args()
    runs, counts = (20, (20, 30)) if arguments.smoke else (arguments.runs, COUNTS)
    start, smallest = time.perf_counter(), 1.0
    print(f"{'':<18}{'n':>6}" + "".join(f"{f'p = {share:g}':>10}" for share in SHARES))
    for kind in ("shares", *KINDS):
        for count in counts:
            row = [
                share_coverage(count, share)
                if kind == "shares"
                else simulated_coverage(KINDS[kind], count, share, runs, arguments.seed)
                for share in SHARES
            ]
            smallest = min(smallest, *row)
            print(f"{kind:<18}{count:>6}" + "".join(f"{covered:>10.1%}" for covered in row), flush=True)
    print(f"{runs} samples for each simulated entry, {time.perf_counter() - start:.0f} s")
    caution = ", of too few samples to mean anything" if arguments.smoke else ""
    print(f"smallest coverage of a nominal 95 %: {smallest:.1%}{caution}")


if __name__ == "__main__":
    main()
