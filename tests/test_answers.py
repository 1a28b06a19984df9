"""The challenge's rule, worked by hand."""

import pytest

from lorax_vlm.answers import (
    exact_match,
    most_frequent_answer,
    normalize_answer,
    soft_score,
    strip_punctuation,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a dog", "dog"),
        ("The Eiffel Tower", "eiffel tower"),
        ("an", ""),
        ("two", "2"),
        ("Ten", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("it's", "it's"),
        ("its", "its"),  # left alone: the published table has no entry for it
        ("somebody'd", "somebodyd"),  # the published table has this one the wrong way round
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("1,000", "1000"),  # a comma in a number removes all punctuation
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("t-shirt", "t shirt"),
        ("t-shirt, red", "t shirt red"),  # the hyphen touches no space, the comma does
        ("(left)", "left"),
        ("what?!", "what"),
        ("on the table\n", "on table"),
        ("  yes  ", "yes"),
    ],
)
def test_normalised_answers(given: str, expected: str) -> None:
    assert normalize_answer(given) == expected


def test_punctuation_beside_a_space_disappears_and_within_a_word_becomes_a_space() -> None:
    assert strip_punctuation("black-white") == "black white"
    assert strip_punctuation("black- white-grey") == "black whitegrey"  # one hyphen beside a space decides for all
    assert strip_punctuation("5,000-6,000") == "50006000"


# (answer, annotators, accuracy). Accuracy is the mean over leaving one annotator out of min(1, matches / 3).
CASES = [
    # All ten agree: each left-out set has nine matches.
    ("yes", ["yes"] * 10, 1.0),
    ("no", ["yes"] * 10, 0.0),
    # Three of ten: leaving out one of the three leaves 2/3, leaving out another leaves 1. (3 * 2/3 + 7) / 10
    ("2", ["2"] * 3 + ["3"] * 7, 0.9),
    # Two of ten: (2 * 1/3 + 8 * 2/3) / 10
    ("2", ["2"] * 2 + ["3"] * 8, 0.6),
    # One of ten: (1 * 0 + 9 * 1/3) / 10
    ("2", ["2"] + ["3"] * 9, 0.3),
    # Four of ten: always at least three left.
    ("2", ["2"] * 4 + ["3"] * 6, 1.0),
    # Digits and articles are normalised in the answer.
    ("Two", ["2"] * 3 + ["3"] * 7, 0.9),
    ("the dog", ["dog"] * 10, 1.0),
    # Annotators' articles stay; so "the dog" by an annotator is never matched.
    ("the dog", ["the dog"] * 10, 0.0),
    # Their punctuation goes only when they disagree.
    ("yes", ["yes."] * 10, 0.0),
    ("yes", ["yes."] * 9 + ["no"], 1.0),
    # Contractions.
    ("dont know", ["don't know"] * 5 + ["no"] * 5, 1.0),
    # Fewer than ten annotators: the rule is the same, so all of three agreeing score 2/3, of two 1/3.
    ("yes", ["yes"] * 3, 2 / 3),
    ("yes", ["yes"] * 2, 1 / 3),
    ("yes", ["yes", "no"], 1 / 6),
    ("yes", ["yes"] * 4, 1.0),
    ("yes", ["yes", "yes", "no", "no", "no"], (2 * 1 / 3 + 3 * 2 / 3) / 5),
]


@pytest.mark.parametrize(("answer", "annotators", "accuracy"), CASES)
def test_accuracy_by_hand(answer: str, annotators: list[str], accuracy: float) -> None:
    assert vqa_accuracy(answer, annotators) == pytest.approx(accuracy)


def test_one_annotator_needs_exact_match() -> None:
    with pytest.raises(ValueError, match="at least 2 annotators, got 1"):
        vqa_accuracy("yes", ["yes"])
    assert exact_match("The Dog.", ["dog"])
    assert exact_match("dog", ["cat", "a dog"])
    assert not exact_match("dogs", ["dog"])


def test_soft_scores_are_vilts() -> None:
    assert [soft_score(n) for n in range(6)] == [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]


def test_the_most_frequent_answer_is_the_first_of_several() -> None:
    assert most_frequent_answer(["b", "a", "a", "b"]) == "b"
    assert most_frequent_answer(["c", "a", "a", "b"]) == "a"
