"""How sure a mean is, and a difference of two means over the same questions: percentile bootstrap (Efron, 1979)."""

from collections.abc import Sequence

import numpy as np

from lorax_vlm.types import Interval

RESAMPLES = 10_000
_CHUNK = 500


def mean_interval(scores: Sequence[float], seed: int = 0) -> Interval:
    """Mean with its 95 % interval over resampled questions.

    Raises:
        ValueError: There are no scores.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise ValueError("At least one score is needed.")
    low, high = np.quantile(_resampled_means(values, seed), (0.025, 0.975))
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``second - first`` with its 95 % interval; both scored the same questions in the same order.

    The pairing is what makes small differences visible: how hard a question is cancels out.

    Raises:
        ValueError: The numbers of scores differ, or there are none.
    """
    if len(first) != len(second):
        raise ValueError(f"Paired scores are needed, got {len(first)} and {len(second)}.")
    return mean_interval(np.subtract(second, first).tolist(), seed)


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chunks = [
        values[rng.integers(0, values.size, (_CHUNK, values.size))].mean(axis=1) for _ in range(RESAMPLES // _CHUNK)
    ]
    return np.concatenate(chunks)
