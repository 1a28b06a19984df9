"""How sure a mean is, and a difference of two means over the same questions: 95 % intervals for scores from 0 to 1.

An interval is the range of means that reweighted examples have: weights are drawn from the simplex as in the Bayesian
bootstrap (Rubin, 1981), and each side takes in one more example that is as bad, or as good, as a score can be (Gaffke,
2005). For scores of 0 and 1 that is the interval of Clopper and Pearson, and for a paired difference of such scores it
agrees with the exact sign test; so thirty right answers of thirty leave room for a wrong one, and a single example says
next to nothing. Where several questions are about one image the images are reweighted, each with all of its questions.

No weights are drawn: the share of weightings below a value is the distribution function, at zero, of a sum of gamma
variables, taken from its saddlepoint approximation (Barndorff-Nielsen, 1986). So there is no seed, and neither time nor
memory grow with more than the number of examples.

No torch.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from lorax_vlm.errors import UsageError
from lorax_vlm.types import Interval

SMALLEST_GAIN = 0.03
"""A gain of less says nothing about how much of it is retained."""
_BEYOND = NormalDist().inv_cdf(0.975)
_PRECISION = 1e-7
_CLOSE_ENOUGH = 1e-5  # standard deviations
_MOST_STEPS = 100


Scores = Sequence[float] | np.ndarray
"""One per question."""


def numbers_of(keys: Iterable[Hashable]) -> list[int]:
    """A number for each key, in the order of their first ones; equal for equal keys."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def mean_interval(scores: Scores, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of scores from 0 to 1, with its 95 % interval.

    Args:
        scores: One per question.
        groups: What each question belongs to, such as its image: questions of one group are not independent.

    Raises:
        UsageError: There are no scores, one is not from 0 to 1, or there is not one group for each.
    """
    values = _checked(scores)
    return _interval(values, groups, worst=0.0, best=1.0)


def paired_difference(first: Scores, second: Scores, groups: Sequence[Hashable] | None = None) -> Interval:
    """Mean of ``second - first`` with its 95 % interval; both scored the same questions in the same order.

    The pairing is what makes small differences visible: how hard a question is cancels out.

    Raises:
        UsageError: The numbers of scores differ; otherwise as for ``mean_interval``.
    """
    if len(first) != len(second):
        raise UsageError(f"Paired scores are needed, got {len(first)} and {len(second)}.")
    return _interval(_checked(second) - _checked(first), groups, worst=-1.0, best=1.0)


def retention(
    transferred: Scores,
    alone: Scores,
    native: Scores,
    groups: Sequence[Hashable] | None = None,
) -> Interval | None:
    """``(transferred - alone) / (native - alone)`` with its 95 % interval; all scored the same questions in order.

    None where it cannot be measured: the native gain is below ``SMALLEST_GAIN``, or its interval includes zero.

    Raises:
        UsageError: The numbers of scores differ; otherwise as for ``mean_interval``.
    """
    if not len(transferred) == len(alone) == len(native):
        raise UsageError(f"Scores of the same questions are needed: {len(transferred)}, {len(alone)}, {len(native)}.")
    gain = paired_difference(alone, native, groups)
    if gain.value < SMALLEST_GAIN or gain.low <= 0:
        return None
    moved, own = _checked(transferred) - _checked(alone), _checked(native) - _checked(alone)
    sums, sizes = _by_group(np.stack([moved, own]), groups)
    size = _likely_size(sizes)
    low = _limit(_Points.of(sums[0], sums[1], extra=(-size, 0.0)), -_BEYOND)
    high = _limit(_Points.of(sums[0], sums[1], extra=(size, 0.0)), _BEYOND)
    return Interval(float(moved.sum() / own.sum()), low, high, count=len(moved), groups=len(sizes))


def _checked(scores: Scores) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise UsageError("At least one score is needed.")
    if not (values.min() >= 0 and values.max() <= 1):  # also for what is no number
        raise UsageError(f"Scores must be from 0 to 1, got {values.min():g} to {values.max():g}.")
    return values


def _interval(values: np.ndarray, groups: Sequence[Hashable] | None, worst: float, best: float) -> Interval:
    (sums,), sizes = _by_group(values[None], groups)
    size = _likely_size(sizes)
    low = _limit(_Points.of(sums, sizes, extra=(worst * size, size)), -_BEYOND)
    high = _limit(_Points.of(sums, sizes, extra=(best * size, size)), _BEYOND)
    return Interval(float(values.mean()), max(low, worst), min(high, best), count=len(values), groups=len(sizes))


def _by_group(rows: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums ``(..., G)`` of rows ``(..., N)`` over each group, and the groups' sizes ``(G,)``."""
    if groups is None:
        return rows, np.ones(rows.shape[-1])
    if len(groups) != rows.shape[-1]:
        raise UsageError(f"One group for each score is needed, got {len(groups)} for {rows.shape[-1]}.")
    numbers: dict[Hashable, int] = {}
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    sums = np.stack([np.bincount(members, weights=row) for row in rows])
    return sums, np.bincount(members).astype(np.float64)


def _likely_size(sizes: np.ndarray) -> float:
    """Of the group that a question drawn at random belongs to; the further group is taken to be of this size."""
    return float((sizes**2).sum() / sizes.sum())


@dataclass(frozen=True)
class _Points:
    """Different pairs ``(top, bottom)`` with how often each occurs; a ratio of their weighted sums is looked at."""

    top: np.ndarray
    bottom: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, top: np.ndarray, bottom: np.ndarray, extra: tuple[float, float]) -> "_Points":
        """All pairs and one more."""
        pairs = np.stack([np.append(top, extra[0]), np.append(bottom, extra[1])])
        # As complex numbers, which sort by one part and then by the other; rounded, as sums of equal scores may differ.
        different, counts = np.unique(np.round(pairs[0] + 1j * pairs[1], 9), return_counts=True)
        return cls(different.real, different.imag, counts.astype(np.float64))

    def centre(self) -> tuple[float, float]:
        """The ratio with equal weights, and its standard deviation over weightings."""
        total = float(self.counts @ self.bottom)
        ratio = float(self.counts @ self.top) / total
        rest = self.top - ratio * self.bottom
        return ratio, math.sqrt(float(self.counts @ rest**2)) / abs(total)

    def quantile_of(self, ratio: float) -> float:
        """How many standard deviations of a normal distribution ``ratio`` is from the middle of all weightings."""
        return _normal_score(self.top - ratio * self.bottom, self.counts)


def _limit(points: _Points, beyond: float) -> float:
    """The ratio that lies ``beyond`` standard deviations from the middle."""
    centre, spread = points.centre()
    if spread < _PRECISION:
        return centre

    def excess(ratio: float) -> float:
        return math.copysign(1.0, beyond) * (points.quantile_of(ratio) - beyond)

    inside, step = centre, beyond * spread
    outside, missing = centre + step, excess(centre + step)
    for _ in range(_MOST_STEPS):
        if missing >= 0:
            break
        step *= 2
        inside, outside, missing = outside, outside + step, excess(outside + step)
    return _root(excess, inside, outside, missing)


def _root(excess: Callable[[float], float], inside: float, outside: float, above: float) -> float:
    """Where ``excess`` becomes 0 on the way from ``inside`` (below) to ``outside``: regula falsi, Illinois variant."""
    below = -_BEYOND
    for _ in range(_MOST_STEPS):
        if abs(outside - inside) <= _PRECISION:
            break
        share = below / (below - above) if math.isfinite(above) else 0.5
        middle = inside + min(max(share, 0.01), 0.99) * (outside - inside)
        found = excess(middle)
        if found < 0:
            inside, below, above = middle, found, above / 2
        else:
            outside, above, below = middle, found, below / 2
        if abs(found) < _CLOSE_ENOUGH:
            return middle
    return (inside + outside) / 2


def _normal_score(terms: np.ndarray, counts: np.ndarray) -> float:
    """The normal quantile of the chance that ``sum(terms * weights) <= 0``, the weights gamma variables of ``counts``.

    With ``K(s) = -sum(counts * log(1 - s * terms))`` and ``K'(s) = 0``: from ``w = sign(s) sqrt(-2 K(s))`` and
    ``u = s sqrt(K''(s))`` follows ``w + log(u / w) / w``. It is off by less than 0.0006 in the chances used here.
    """
    highest, lowest = float(terms.max()), float(terms.min())
    if highest <= 0 or lowest >= 0:
        return math.inf if highest <= 0 else -math.inf
    tilt, left, right = 0.0, 1 / lowest, 1 / highest
    for _ in range(_MOST_STEPS):
        parts = terms / (1 - tilt * terms)
        slope, curvature = float(counts @ parts), float(counts @ parts**2)
        left, right = (tilt, right) if slope < 0 else (left, tilt)
        if abs(slope) <= _CLOSE_ENOUGH * math.sqrt(curvature):
            break
        tilt -= slope / curvature
        if not left < tilt < right:
            tilt = (left + right) / 2
    curvature = float(counts @ (terms / (1 - tilt * terms)) ** 2)
    w = math.copysign(math.sqrt(max(0.0, 2 * float(counts @ np.log1p(-tilt * terms)))), tilt)
    return w + math.log(tilt * math.sqrt(curvature) / w) / w if abs(w) > 1e-3 else w
