"""What a report says, against figures worked out by hand."""

import dataclasses

import pytest

from lorax_vlm.exchange.plan import TransferPlan
from lorax_vlm.exchange.report import Scored, TransferReport
from lorax_vlm.types import Interval

PLAN = TransferPlan("mine", "here", "there", "distilled", parts=(), student_groups=("vision",), rank=4, reasons=())


def report() -> TransferReport:
    """Eight questions: the source has six right, the target alone one, the result three. Ten times over."""
    right = ("1", "2", "3", "4", "5", "6", "7", "8")

    def scored(name: str, *texts: str) -> Scored:
        scores = tuple(float(mine == its) for mine, its in zip(texts, right, strict=True))
        return Scored(name, scores * 10, texts * 10)

    return TransferReport(
        plan=PLAN,
        label="distilled",
        adapter="there.mine",
        chosen="distilled",
        measured_by="labels",
        alone=scored("target alone", "1", "", "", " ", "0", "0", "0", "0"),
        candidates=(scored("distilled", "1", "two", "3", "4", "0", "9", "9", ""),),
        source=scored("source on its own base", "1", "2", "3", "4", "5", "6", "9", "9"),
        off_task=(Interval(0.9, 0.8, 1.0), Interval(0.5, 0.4, 0.6)),
    )


def test_what_is_kept_and_what_it_costs_elsewhere() -> None:
    made = report()
    assert made.gain.value == 2 / 8, "three right instead of one; 'two' is not the judge's '2'"
    assert made.of_source is not None
    assert made.of_source.value == pytest.approx((3 - 1) / (6 - 1))
    assert made.agreement is not None
    assert made.agreement.value == 5 / 8, "1, 2 (written two), 3, 4, and the wrong 9"
    assert made.side_effects() == [
        f"says what the source says: {made.agreement.percent()}",
        "other questions: 90.0 % (80.0 to 100.0) alone, 50.0 % (40.0 to 60.0) with it",
        "empty answers: 37.5 % alone, 12.5 % with it",
    ]


def test_what_was_not_asked_is_not_reported() -> None:
    unasked = dataclasses.replace(report(), source=None, off_task=None, measured_by="agreement")
    assert unasked.agreement is None
    assert unasked.side_effects() == ["empty answers: 37.5 % alone, 12.5 % with it"]
    assert not [line for line in unasked.lines() if "source" in line]


def test_questions_about_one_image_count_as_one() -> None:
    """Three questions about each of forty images say no more than one about each would."""
    texts = ("",) * 120
    right = tuple(float(number % 40 < 30) for number in range(120))
    alone = Scored("alone", (0.0,) * 120, texts)
    mine = Scored("mine", right, texts, images=tuple(range(40)) * 3)
    once = Scored("once", right[:40], texts[:40])
    assert mine.mean.groups == 40
    assert (mine.mean.low, mine.mean.high) == (once.mean.low, once.mean.high)
    assert mine.gain_over(alone).low < Scored("each", right, texts).gain_over(alone).low
    few = Scored("few", right, texts, images=tuple(range(20)) * 6)
    assert not few.gain_over(alone).above_zero, "a hundred questions about twenty images are too few"
