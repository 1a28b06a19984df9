import math

import numpy as np
import pytest

from lorax_vlm.evaluation.bootstrap import mean_interval, paired_difference


def test_two_scores_by_enumeration() -> None:
    # Resamples of (0, 1) have means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the middle 95 % is all of it.
    interval = mean_interval([0.0, 1.0])
    assert (interval.value, interval.low, interval.high) == (0.5, 0.0, 1.0)


def test_equal_scores_have_no_width() -> None:
    assert mean_interval([0.25] * 7) == mean_interval([0.25] * 7, seed=5)
    assert mean_interval([0.25] * 7).low == mean_interval([0.25] * 7).high == 0.25


def test_width_is_that_of_the_normal_approximation() -> None:
    scores = [1.0] * 320 + [0.0] * 80
    expected = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    interval = mean_interval(scores)
    assert interval.high - interval.value == pytest.approx(expected, rel=0.08)
    assert interval.value - interval.low == pytest.approx(expected, rel=0.08)


def test_pairing_shows_what_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(200) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:8]] = 1.0  # eight questions better, none worse
    difference = paired_difference(first.tolist(), second.tolist())
    assert difference.value == pytest.approx(0.04)
    assert difference.low > 0
    assert mean_interval(first.tolist()).high > mean_interval(second.tolist()).low  # the intervals overlap


def test_sign_and_errors() -> None:
    assert paired_difference([1.0, 1.0], [0.0, 0.0]).value == -1.0
    with pytest.raises(ValueError, match="Paired scores are needed, got 2 and 1"):
        paired_difference([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="At least one score"):
        mean_interval([])
