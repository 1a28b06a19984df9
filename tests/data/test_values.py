"""What stands in a cell, as text: a table of what people write."""

import math
from decimal import Decimal
from typing import Any

import pytest

from lorax_vlm.data.readers.values import answers_in, captions_in, id_text, is_blank, require_text, written_out
from lorax_vlm.errors import MalformedRow


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("yes", ["yes"]),
        (2, ["2"]),
        (2.0, ["2"]),
        (2.5, ["2.5"]),
        (True, ["yes"]),
        (False, ["no"]),
        (0, ["0"]),
        (["a", "b", "a"], ["a", "b", "a"]),
        ([1, "one", True], ["1", "one", "yes"]),
        ({"answer": "yes"}, ["yes"]),
        ({"answer": ["a", "b"], "answer_id": [1, 2]}, ["a", "b"]),
        ([{"answer": "a", "answer_confidence": "yes"}, {"answer": 3}], ["a", "3"]),
        (["no"] * 9 + [""], ["no"] * 9 + [""]),
        ([{"answer": "no"}, {"answer": None}, {"answer": "  "}], ["no", "", ""]),
        (["a", None, math.nan], ["a", "", ""]),
        (" spaced ", [" spaced "]),
    ],
)
def test_answers(value: Any, expected: list[str]) -> None:
    assert answers_in(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(None, "", " \n", "\u200b", [], ["", " "], [None], {}, {"text": "yes"}, [{}], [["a"]], [{"answer": ["a"]}]),
        *({"answer": []}, {"answer": {"answer": "a"}}, math.inf, 10**80, b"yes", Decimal("1.5"), ["a", b"b"]),
        *("half \ud83d", "null \0", ["fine", "half \ude00"]),
    ],
)
def test_what_is_no_answer(value: Any) -> None:
    with pytest.raises(MalformedRow, match="an answer") as caught:
        answers_in(value)
    assert caught.value.field == "answer"


@pytest.mark.parametrize(
    ("value", "expected"), [("a cat", ["a cat"]), (["a", "b"], ["a", "b"]), ("two\nlines", ["two\nlines"])]
)
def test_captions(value: Any, expected: list[str]) -> None:
    assert captions_in(value) == expected


@pytest.mark.parametrize(
    "value", ["", " ", "\u2060\u200b", 7, True, {"raw": "a"}, [], ["a", ""], ["a", 2], "\ud83d", "\0"]
)
def test_what_is_no_caption(value: Any) -> None:
    with pytest.raises(MalformedRow, match="the caption"):
        captions_in(value)


def test_a_refusal_says_what_stands_there_cut_short() -> None:
    with pytest.raises(MalformedRow) as caught:
        require_text(["long"] * 1000, "the question", "question")
    assert caught.value.reason == "the question is empty or not text: a list of 1000"
    assert (caught.value.field, caught.value.value, caught.value.wanted) == ("question", "a list of 1000", "text")
    with pytest.raises(MalformedRow) as caught:
        require_text("\ud83d" * 10_000, "the question", "question")
    assert len(caught.value.value) < 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), ("7", "7"), (7.0, "7"), (" 7 ", "7"), ("007", "007"), ("n161313", "n161313"), (0, "0"), (-3, "-3")],
)
def test_ids_that_are_one(value: Any, expected: str) -> None:
    assert id_text(value) == expected


@pytest.mark.parametrize("value", [None, True, False, "", " ", [1], {"id": 1}, math.nan, math.inf, "\ud83d", 10**80])
def test_what_is_no_id(value: Any) -> None:
    assert id_text(value) is None


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u200b\u2060", "\u00a0", "\x07"])
def test_nothing_to_see(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["0", "-", "\u2764\ufe0f", "\u0643", "\U0001f1e9\U0001f1ea", "a\u200b"])
def test_something_to_see(text: str) -> None:
    assert not is_blank(text)


@pytest.mark.parametrize("value", [None, [], {}, (), b"x", object(), math.nan, math.inf, -math.inf])
def test_what_cannot_be_written_out(value: Any) -> None:
    assert written_out(value) is None
