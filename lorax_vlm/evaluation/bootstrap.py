"""How sure a mean is, and a difference of two means over the same questions: percentile bootstrap (Efron, 1979)."""

from collections.abc import Sequence

import numpy as np

from lorax_vlm.errors import UsageError
from lorax_vlm.types import Interval

RESAMPLES = 10_000
_CHUNK = 500
SMALLEST_GAIN = 0.03
"""A gain of less says nothing about how much of it is retained."""


def mean_interval(scores: Sequence[float], seed: int = 0) -> Interval:
    """Mean with its 95 % interval over resampled questions.

    Raises:
        UsageError: There are no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise UsageError("At least one score is needed.")
    low, high = np.quantile(_resampled_means(values, seed), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``second - first`` with its 95 % interval; both scored the same questions in the same order.

    The pairing is what makes small differences visible: how hard a question is cancels out.

    Raises:
        UsageError: The numbers of scores differ, or there are none.
    """
    if len(first) != len(second):
        raise UsageError(f"Paired scores are needed, got {len(first)} and {len(second)}.")
    return mean_interval(np.subtract(second, first).tolist(), seed)


def retention(
    transferred: Sequence[float], alone: Sequence[float], native: Sequence[float], seed: int = 0
) -> Interval | None:
    """``(transferred - alone) / (native - alone)`` with its 95 % interval; all scored the same questions in order.

    Numerator and denominator are resampled together. None where it cannot be measured: the native gain is below
    ``SMALLEST_GAIN``, or its interval includes zero.

    Raises:
        UsageError: The numbers of scores differ, or there are none.
    """
    if not len(transferred) == len(alone) == len(native):
        raise UsageError(f"Scores of the same questions are needed: {len(transferred)}, {len(alone)}, {len(native)}.")
    gain = paired_difference(alone, native, seed)
    if gain.value < SMALLEST_GAIN or gain.low <= 0:
        return None
    over_base = np.stack([np.subtract(transferred, alone), np.subtract(native, alone)])
    moved, own = _resampled_means(over_base, seed)
    measured = own > 0  # of a sample without a gain there is no share
    low, high = np.quantile(moved[measured] / own[measured], (0.025, 0.975))
    value = over_base[0].mean() / over_base[1].mean()
    return Interval(float(value), float(low), float(high))


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means ``(..., RESAMPLES)`` of ``values`` ``(..., N)`` over the same resampled questions for all rows."""
    rng, count = np.random.default_rng(seed), values.shape[-1]
    chunks = [values[..., rng.integers(0, count, (_CHUNK, count))].mean(axis=-1) for _ in range(RESAMPLES // _CHUNK)]
    return np.concatenate(chunks, axis=-1)
