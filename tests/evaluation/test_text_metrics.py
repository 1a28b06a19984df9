"""Against figures worked by hand from the definitions."""

import importlib.util
import math

import pytest

from lorax_vlm.errors import MissingExtra
from lorax_vlm.evaluation.text_metrics import caption_metrics, tokenize

REFERENCES = [["a red circle and a blue square"], ["two green stars on a table"], ["one yellow triangle in a corner"]]


def test_equal_captions_get_the_highest_scores() -> None:
    figures = caption_metrics([texts[0] for texts in REFERENCES], REFERENCES)
    assert figures["CIDEr"] == pytest.approx(10.0, abs=1e-6)
    assert figures["BLEU-4"] == pytest.approx(1.0, abs=1e-6)
    assert figures["ROUGE-L"] == pytest.approx(1.0)


def test_foreign_captions_get_the_lowest() -> None:
    figures = caption_metrics(["ships sail far away tonight"] * 3, REFERENCES)
    assert figures["CIDEr"] == 0.0
    assert figures["BLEU-4"] < 1e-6
    assert figures["ROUGE-L"] == 0.0


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence "a man a horse": 4 of 5 words given, 4 of 6 expected; beta is 1.2.
    precision, recall, beta2 = 4 / 5, 4 / 6, 1.2**2
    expected = (1 + beta2) * precision * recall / (recall + beta2 * precision)
    figures = caption_metrics(["a man on a horse"], [["a man riding a brown horse"]])
    assert figures["ROUGE-L"] == pytest.approx(expected)


def test_bleu_by_hand() -> None:
    # 5 words against 6: brevity exp(1 - 6/5). n-grams: 5/5, 3/4, 1/3, 0 of 2 (a tiny number stands for none).
    figures = caption_metrics(["a man riding a horse"], [["a man riding a brown horse"]])
    matches, totals = (5, 3, 2, 1), (5, 4, 3, 2)
    expected = math.exp(1 - 6 / 5) * math.prod(m / t for m, t in zip(matches, totals, strict=True)) ** 0.25
    assert figures["BLEU-4"] == pytest.approx(expected, rel=1e-4)


def test_several_references_are_better_than_one() -> None:
    one = caption_metrics(["a man on a horse", "a cat"], [["somebody rides along the beach"], ["a cat"]])
    two = caption_metrics(
        ["a man on a horse", "a cat"], [["somebody rides along the beach", "a man on a horse"], ["a cat"]]
    )
    assert all(two[name] > one[name] for name in one)


def test_tokens_have_no_punctuation_or_case() -> None:
    assert tokenize("A red circle, at the top-left. Don't!") == "a red circle at the top left don't"


def test_bad_input_and_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        caption_metrics([], [])
    with pytest.raises(ValueError, match="got 1 and 2"):
        caption_metrics(["a"], [["a"], ["b"]])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"lorax-vlm\[metrics\]"):
        caption_metrics(["a"], [["a"]])
