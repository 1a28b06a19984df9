"""The challenge's rule: worked by hand, and against a second account of the published program."""

import random
import re

import pytest

from lorax_vlm.answers import (
    _CONTRACTIONS,
    exact_match,
    most_frequent_answer,
    normalize_answer,
    soft_score,
    strip_punctuation,
    vqa_accuracy,
)
from lorax_vlm.data.examples import answered
from lorax_vlm.data.readers.values import answers_in
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.questions import score_answers
from lorax_vlm.types import Answer

# The published table of contractions, whole: what is written, and the spellings that become it. Words with a capital
# never occur (everything is in lower case before), two become what they are, and one is the wrong way round.
PUBLISHED_CONTRACTIONS = """
ain't: aint; aren't: arent; can't: cant; could've: couldve; couldn't: couldnt; couldn't've: couldn'tve
couldnt've; didn't: didnt; doesn't: doesnt; don't: dont; hadn't: hadnt; hadn't've: hadnt've hadn'tve;
hasn't: hasnt; haven't: havent; he'd: hed; he'd've: hed've he'dve; he's: hes; how'd: howd; how'll:
howll; how's: hows; I'd've: Id've I'dve; I'm: Im; I've: Ive; isn't: isnt; it'd: itd; it'd've: itd've
it'dve; it'll: itll; let's: let's; ma'am: maam; mightn't: mightnt; mightn't've: mightnt've mightn'tve;
might've: mightve; mustn't: mustnt; must've: mustve; needn't: neednt; not've: notve; o'clock: oclock;
oughtn't: oughtnt; 'ow's'at: ow's'at 'ows'at 'ow'sat; shan't: shant; she'd've: shed've she'dve; she's:
she's; should've: shouldve; shouldn't: shouldnt; shouldn't've: shouldnt've shouldn'tve; somebodyd:
somebody'd; somebody'd've: somebodyd've somebody'dve; somebody'll: somebodyll; somebody's: somebodys;
someone'd: someoned; someone'd've: someoned've someone'dve; someone'll: someonell; someone's: someones;
something'd: somethingd; something'd've: somethingd've something'dve; something'll: somethingll; that's:
thats; there'd: thered; there'd've: thered've there'dve; there're: therere; there's: theres; they'd:
theyd; they'd've: theyd've they'dve; they'll: theyll; they're: theyre; they've: theyve; 'twas: twas;
wasn't: wasnt; we'd've: wed've we'dve; we've: weve; weren't: werent; what'll: whatll; what're: whatre;
what's: whats; what've: whatve; when's: whens; where'd: whered; where's: wheres; where've: whereve;
who'd: whod; who'd've: whod've who'dve; who'll: wholl; who's: whos; who've: whove; why'll: whyll;
why're: whyre; why's: whys; won't: wont; would've: wouldve; wouldn't: wouldnt; wouldn't've: wouldnt've
wouldn'tve; y'all: yall; y'all'll: yall'll y'allll; y'all'd've: yall'd've y'alld've y'all'dve; you'd:
youd; you'd've: youd've you'dve; you'll: youll; you're: youre; you've: youve
"""
SPELLINGS = {
    spelling: word.strip()
    for entry in PUBLISHED_CONTRACTIONS.split(";")
    for word, spellings in [entry.split(":")]
    for spelling in spellings.split()
}
DIGITS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"},
    **{"seven": "7", "eight": "8", "nine": "9", "ten": "10"},
}


def test_contractions_are_the_published_ones() -> None:
    assert len(SPELLINGS) == 120
    reachable = {spelling: word for spelling, word in SPELLINGS.items() if spelling.islower() and spelling != word}
    assert reachable == _CONTRACTIONS


def published_accuracy(answer: str, annotators: list[str]) -> float:
    """What the published program gives: annotators are numbered records, one after another is set aside."""

    def tidy(text: str) -> str:
        return re.sub("[\n\t]", " ", text).strip()

    def normalised(text: str) -> str:
        glued = bool(re.search(r"(\d)(\,)(\d)", text))
        kept = text
        for mark in (
            ";",
            "/",
            "[",
            "]",
            '"',
            "{",
            "}",
            "(",
            ")",
            "=",
            "+",
            "\\",
            "_",
            "-",
            ">",
            "<",
            "@",
            "`",
            ",",
            "?",
            "!",
        ):
            drop = glued or mark + " " in text or " " + mark in text
            kept = kept.replace(mark, "" if drop else " ")
        kept = re.sub(r"(?!<=\d)(\.)(?!\d)", "", kept, count=int(re.UNICODE))
        words = [DIGITS.get(word, word) for word in kept.lower().split()]
        words = [word for word in words if word not in {"a", "an", "the"}]
        return " ".join(SPELLINGS.get(word, word) for word in words)

    said = tidy(answer)
    records = [{"number": number, "text": tidy(text)} for number, text in enumerate(annotators)]
    if len({record["text"] for record in records}) != 1:
        said = normalised(said)
        records = [{**record, "text": normalised(str(record["text"]))} for record in records]
    accuracies = []
    for left_out in records:
        agreeing = [record for record in records if record != left_out and record["text"] == said]
        accuracies.append(min(1, float(len(agreeing)) / 3))
    return float(sum(accuracies)) / len(accuracies)


PIECES = (
    *("yes", "no", "Yes", "NO", "a", "an", "the", "The", "A", "none", "two", "Two", "2", "ten", "red", "Red", "dog"),
    *("don't", "dont", "DONT", "couldn'tve", "somebody'd", "Id've", "im", "let's", "ows'at", "it's", "'", "’", "don’t"),
    *(
        "1,000",
        "3.5",
        "3.",
        ".5",
        "...",
        ".",
        "?",
        "!",
        "-",
        "/",
        "t-shirt",
        "black/white",
        "a-b",
        "(left)",
        "@",
        "`x`",
    ),
    *(
        "é",
        "e\u0301",
        "İ",
        "ß",
        "日本",
        "२",
        "١,٢",
        "\u00a0",
        "\u2003",
        "\t",
        "\n",
        "\x1c",
        "\u200b",
        "🙂",
        "\\",
        "_",
        "=",
        "+",
    ),
)


def odd_text(rng: random.Random) -> str:
    return "".join(
        rng.choice(("", "", " ", "  ", ",", ", ", ".")) + rng.choice(PIECES)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))
    )


def odd_question(rng: random.Random) -> tuple[str, list[str]]:
    """An answer and annotators who mostly say the same in other spellings."""
    pool = [odd_text(rng) for _ in range(rng.choice((1, 2, 3)))]
    pool += [
        change(text) for text in pool for change in (str.upper, str.title, "the {}".format, "{}.".format, " {} ".format)
    ]
    most = rng.choice((1, 2, 4, len(pool)))
    annotators = [rng.choice(pool[:most]) for _ in range(rng.choice((2, 3, 5, 10, 10, 10)))]
    return rng.choice((rng.choice(pool), rng.choice(annotators), odd_text(rng))), annotators


def test_ten_thousand_odd_questions_get_the_published_figure() -> None:
    rng, scores = random.Random(0), []
    for _ in range(10_000):
        answer, annotators = odd_question(rng)
        scores.append(vqa_accuracy(answer, annotators))
        expected = published_accuracy(answer, annotators) if answer.strip() else 0.0
        assert scores[-1] == expected, (answer, annotators)
    assert sum(0 < score < 1 for score in scores) > 1000, "many of the cases are not trivial"
    assert sum(score == 1 for score in scores) > 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a dog", "dog"),
        ("The Eiffel Tower", "eiffel tower"),
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
        # What the challenge would turn into nothing stays what it is.
        ("A", "a"),
        ("an", "an"),
        ("The", "the"),
        ("a.", "a"),
        ("(A)", "a"),
        ("the a", "the a"),
        ("?", "?"),
        (" ... ", "..."),
        ("! ?", "! ?"),
        ("", ""),
        (" \n\t", ""),
    ],
)
def test_normalised_answers(given: str, expected: str) -> None:
    assert normalize_answer(given) == expected


def test_no_text_is_normalised_to_nothing() -> None:
    rng = random.Random(1)
    for text in (*PIECES, *(odd_text(rng) for _ in range(5_000))):
        assert bool(normalize_answer(text)) == bool(text.strip()), text


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
    # Where they disagree both sides are normalised.
    ("Two", ["2"] * 3 + ["3"] * 7, 0.9),
    ("2", ["two"] * 5 + ["three"] * 5, 1.0),
    ("dog", ["a dog"] * 6 + ["cat"] * 4, 1.0),
    ("red", ["Red"] * 9 + ["blue"], 1.0),
    ("yes", ["yes."] * 9 + ["no"], 1.0),
    ("dont know", ["don't know"] * 5 + ["no"] * 5, 1.0),
    ("don't", ["dont"] * 5 + ["no"] * 5, 1.0),
    # Where they agree it goes letter by letter.
    ("the dog", ["the dog"] * 10, 1.0),
    ("the dog", ["dog"] * 10, 0.0),
    ("Yes.", ["yes"] * 10, 0.0),
    ("yes", ["yes."] * 10, 0.0),
    ("t-shirt", ["t-shirt"] * 10, 1.0),
    ("A", ["A"] * 10, 1.0),
    # White space at the ends is no disagreement.
    ("yes", ["yes "] * 10, 1.0),
    (" yes\n", ["yes"] * 5 + ["yes\t"] * 5, 1.0),
    # Saying nothing is never right, whatever annotators left empty.
    ("", [""] * 10, 0.0),
    (" ", ["A"] * 5 + ["the"] * 5, 0.0),
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


@pytest.mark.parametrize(
    ("answer", "annotators", "right"),
    [
        ("The Dog.", ["dog"], True),
        ("dogs", ["dog"], False),
        ("dog", ["cat", "a dog"], True),  # equally frequent
        ("blue", ["red"] * 9 + ["blue"], False),
        ("Red", ["red"] * 9 + ["blue"], True),
        ("2", ["two", "2.", "3"], True),
        ("3", ["two", "2.", "3"], False),
        ("yes", ["", "", "", "yes"], True),  # who says nothing does not count
        ("A", ["A"], True),
        ("(a)", ["A"], True),
        ("the", ["A"], False),
        ("an", ["A"], False),
        ("", ["A"], False),
        ("", [""], False),
        (" ", ["?"], False),
        ("?", ["?"], True),
        ("!", ["?"], False),
        ("yes", [], False),
    ],
)
def test_exact_match(answer: str, annotators: list[str], right: bool) -> None:
    assert exact_match(answer, annotators) is right


def test_soft_scores_are_vilts() -> None:
    assert [soft_score(n) for n in range(6)] == [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]


@pytest.mark.parametrize(
    ("annotators", "expected"),
    [
        (["b", "a", "a", "b"], "b"),
        (["c", "a", "a", "b"], "a"),
        (["Yes", "yes", "YES", "no", "no"], "Yes"),
        (["Yes", "yes", "yes", "no", "no", "no", "no"], "no"),
        (["no", "YES", "yes", "yes"], "yes"),
        (["2", "two", "2.", "3", "3"], "2"),
        (["two", "3", "3", "two", "2"], "two"),
        (["", "", "", "red", "blue", "red"], "red"),
        (["", " ", "red"], "red"),
        (["", ""], ""),
        (["A", "a.", "the", "the", "(A)"], "A"),
    ],
)
def test_the_most_frequent_answer_is_counted_over_spellings(annotators: list[str], expected: str) -> None:
    assert most_frequent_answer(annotators) == expected


def test_nobody_has_no_answer() -> None:
    with pytest.raises(UsageError, match="annotator"):
        most_frequent_answer([])


def test_annotators_who_said_nothing_count_among_them() -> None:
    """The challenge's figure for ten of whom some left it empty, by hand: the mean over leaving each one out."""
    for given, figure in ((3, 0.9), (2, 0.6), (1, 0.3)):
        answers = answers_in(["cat"] * given + ["", None] * ((10 - given) // 2) + [" "] * ((10 - given) % 2))
        assert len(answers) == 10
        example = answered(b"", "what?", answers, "")
        assert example.target == "cat"
        (record,) = score_answers([Answer("cat")], [example], images=[0])
        assert (record.metric, round(record.score, 6)) == ("vqa accuracy", figure)
