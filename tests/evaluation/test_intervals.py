"""Against the exact binomial interval, the sign test, drawn weights, and known truths."""

import math
import tracemalloc

import numpy as np
import pytest

from benchmarks import coverage
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.intervals import mean_interval, paired_difference, retention
from lorax_vlm.types import Interval


def chance_of_at_least(right: int, count: int, share: float) -> float:
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right, count + 1))


@pytest.mark.parametrize(
    ("right", "count"),
    [
        (0, 1),
        (1, 1),
        (1, 2),
        (0, 30),
        (30, 30),
        (1, 30),
        (15, 30),
        (29, 30),
        (99, 100),
        (37, 100),
        (320, 400),
        (3, 900),
    ],
)
def test_shares_have_the_interval_of_clopper_and_pearson(right: int, count: int) -> None:
    interval = mean_interval([1.0] * right + [0.0] * (count - right))
    assert interval.value == pytest.approx(right / count)
    # By definition: at the lower end so many right or more have a chance of 2.5 %, at the upper so many or less.
    if right:
        assert chance_of_at_least(right, count, interval.low) == pytest.approx(0.025, abs=0.0015)
    else:
        assert interval.low == 0.0
    if right < count:
        assert 1 - chance_of_at_least(right + 1, count, interval.high) == pytest.approx(0.025, abs=0.0015)
    else:
        assert interval.high == 1.0


def drawn_limits(values: np.ndarray, sizes: np.ndarray, worst: float, best: float) -> list[float]:
    """The definition, by two hundred thousand drawn weightings, each with one more group at its worst and its best."""
    rng, size = np.random.default_rng(0), (sizes**2).sum() / sizes.sum()
    limits = []
    for extreme, chance in ((worst, 0.025), (best, 0.975)):
        weights = rng.standard_exponential((200_000, len(values) + 1))
        ratios = (weights @ np.append(values, extreme * size)) / (weights @ np.append(sizes, size))
        limits.append(float(np.quantile(ratios, chance)))
    return limits


@pytest.mark.parametrize("count", [2, 3, 12, 40])
def test_scores_of_many_values_have_the_interval_of_drawn_weights(count: int) -> None:
    scores = np.random.default_rng(count).choice((0.0, 0.3, 0.6, 0.9, 1.0), count)
    interval = mean_interval(scores.tolist())
    assert [interval.low, interval.high] == pytest.approx(drawn_limits(scores, np.ones(count), 0.0, 1.0), abs=0.003)
    differences = scores - np.random.default_rng(count + 100).choice((0.0, 0.3, 1.0), count)
    paired = paired_difference((scores - differences).tolist(), scores.tolist())
    assert [paired.low, paired.high] == pytest.approx(drawn_limits(differences, np.ones(count), -1.0, 1.0), abs=0.006)


def test_groups_have_the_interval_of_drawn_weights() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 35)
    groups = np.repeat(np.arange(35), sizes)
    scores = (rng.random(len(groups)) < rng.random(35)[groups]).astype(float)
    interval = mean_interval(scores.tolist(), [f"image {group}" for group in groups])
    sums = np.bincount(groups, weights=scores)
    assert [interval.low, interval.high] == pytest.approx(drawn_limits(sums, sizes.astype(float), 0.0, 1.0), abs=0.003)
    assert (interval.count, interval.groups) == (len(groups), 35)


def test_nothing_that_is_all_alike_is_certain() -> None:
    assert mean_interval([1.0] * 30).low == pytest.approx(0.8843, abs=0.001)
    assert mean_interval([0.3] * 30).low < 0.29
    equal = paired_difference([0.6] * 40, [0.6] * 40)
    assert equal.value == 0.0
    assert equal.low == pytest.approx(-equal.high, abs=1e-6)
    assert equal.high > 0.05
    one = paired_difference([0.0], [1.0])
    assert (one.value, one.above_zero) == (1.0, False)
    assert one.low < 0


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (6, 0), (8, 0), (8, 1), (9, 1), (12, 3), (13, 3), (100, 70)])
def test_a_paired_gain_is_beyond_the_noise_when_the_sign_test_says_so(better: int, worse: int) -> None:
    first = [0.0] * better + [1.0] * worse + [1.0] * 200
    second = [1.0] * better + [0.0] * worse + [1.0] * 200
    sign_test = chance_of_at_least(better, better + worse, 0.5)
    assert paired_difference(first, second).above_zero == (sign_test < 0.025)
    assert paired_difference(second, first).below_zero == (sign_test < 0.025)


def test_pairing_shows_what_separate_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(200) < 0.5).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:8]] = 1.0  # eight questions better, none worse
    difference = paired_difference(first.tolist(), second.tolist())
    assert difference.value == pytest.approx(0.04)
    assert difference.above_zero
    assert mean_interval(first.tolist()).high > mean_interval(second.tolist()).low  # the intervals overlap


def test_questions_about_one_image_count_as_one() -> None:
    scores = [1.0, 0.0] * 50
    alone = mean_interval(scores)
    same = mean_interval([score for score in scores for _ in range(10)], [row for row in range(100) for _ in range(10)])
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=1e-4)
    assert (same.count, same.groups, same.few) == (1000, 100, False)
    of_two = mean_interval(scores, [row % 2 for row in range(100)])
    assert of_two.few
    assert of_two.low < 0.1
    assert of_two.caution == "too few to tell: 100 examples of 2 images or groups"
    assert mean_interval(scores, ["one"] * 100).high > 0.95


def test_retention_is_a_ratio_with_room() -> None:
    rng = np.random.default_rng(1)
    alone, native, moved = (rng.random(400) < share for share in (0.3, 0.9, 0.6))
    kept = retention(moved, alone, native)  # type: ignore[arg-type]
    assert kept is not None
    assert kept.value == pytest.approx((moved.mean() - alone.mean()) / (native.mean() - alone.mean()))
    assert kept.low < 0.5 < kept.high
    assert 0.2 < kept.high - kept.low < 0.4
    everything = retention([1.0] * 40, [0.0] * 40, [1.0] * 40)
    assert everything is not None
    assert everything.value == 1.0
    assert everything.low < 0.98
    assert retention([1.0] * 40, [0.5] * 40, [0.52] * 40) is None, "the gain is below what can be shared out"
    assert retention([1.0] * 8, [0.0] * 8, [1.0] * 3 + [0.0] * 5) is None, "three of eight may be luck"


def test_a_figure_of_few_says_so() -> None:
    assert mean_interval([1.0] * 29).caution == "too few to tell: 29 examples"
    assert mean_interval([1.0]).caution == "too few to tell: 1 example"
    assert mean_interval([1.0] * 30).caution == ""
    assert Interval(0.5, 0.4, 0.6).few, "of an unknown number"
    assert paired_difference([0.0] * 12, [1.0] * 12).points().endswith("too few to tell: 12 examples)")
    assert not paired_difference([0.0] * 12, [1.0] * 12).above_zero, "however clear it looks"
    assert Interval(-1e-18, -0.1, 0.1, 40, 40).points() == "+0.0 points (-10.0 to +10.0)"


def test_sign_and_errors() -> None:
    assert paired_difference([1.0, 1.0], [0.0, 0.0]).value == -1.0
    with pytest.raises(UsageError, match="Paired scores are needed, got 2 and 1"):
        paired_difference([1.0, 1.0], [1.0])
    with pytest.raises(UsageError, match="At least one score"):
        mean_interval([])
    with pytest.raises(UsageError, match="One group for each score is needed, got 1 for 2"):
        mean_interval([0.0, 1.0], ["a"])
    with pytest.raises(UsageError, match="Scores of the same questions"):
        retention([1.0], [0.0], [1.0, 1.0])


@pytest.mark.parametrize("scores", [[0.5, 1.1], [-0.1], [math.nan, 1.0], [math.inf]])
def test_scores_are_shares(scores: list[float]) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        mean_interval(scores)


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", coverage.COUNTS)
@pytest.mark.parametrize("share", [*coverage.SHARES, 0.03, 0.77, 0.998])
def test_intervals_of_shares_hold_them_as_often_as_they_say(count: int, share: float) -> None:
    assert coverage.share_coverage(count, share) >= 0.945  # summed over all outcomes, not simulated


@pytest.mark.parametrize("kind", coverage.KINDS)
@pytest.mark.parametrize(("count", "share"), [(20, 0.01), (30, 0.5), (30, 0.99), (100, 0.1)])
def test_other_intervals_hold_the_truth_too(kind: str, count: int, share: float) -> None:
    # Of 250 runs a true 95 % gives fewer than 90.5 % once in a thousand times.
    assert coverage.simulated_coverage(coverage.KINDS[kind], count, share, runs=250, seed=1) >= 0.905


def test_the_coverage_table_can_be_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["coverage", "--smoke"])
    coverage.main()
    assert capsys.readouterr().out.splitlines()[-1].startswith("smallest coverage of a nominal 95 %: ")


@pytest.mark.timeout(30)
def test_a_validation_set_of_vqav2_is_cheap() -> None:
    rng = np.random.default_rng(0)
    count = 214_354
    first, second = rng.random((2, count)).tolist()
    images = [f"COCO_val2014_{row // 5:012}" for row in range(count)]
    tracemalloc.start()
    try:
        interval = mean_interval(first, images)
        difference = paired_difference(first, second, images)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert interval.high - interval.low < 0.004
    assert difference.low < 0 < difference.high
    assert peak < 100 * 1024 * 1024
