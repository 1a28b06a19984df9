"""Short answers to visual questions, compared by the rule of the VQA challenge. No torch.

The rule is that of its published evaluation code in its present revision (GT-Vision-Lab/VQA, ``vqaEval.py``, commit
a013f00 of March 2021), peculiarities included, so that figures agree with published ones:

- White space at both ends goes, on both sides; then letter for letter, when all annotators said the same.
- Only where they disagree, both sides are normalised: punctuation and articles go, number words become digits,
  contractions get their apostrophe.
- Accuracy is the mean, over leaving each annotator out, of ``min(1, matches / 3)``; so an answer that all of three
  annotators gave scores 2/3, and from four on agreement scores 1.

The published normalisation turns "A", "the" and "?" into nothing, and nothing then equals nothing. Here an answer of
nothing is never right, and outside of the challenge's own figure a text that would become nothing stays what it is.
"""

import re
from collections import Counter
from collections.abc import Sequence

from lorax_vlm.errors import UsageError

_ARTICLES = ("a", "an", "the")
_DIGITS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The published pattern means to spare full stops inside numbers; as written it spares those before a digit.
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_FULL_STOPS = 32

# Contractions with one apostrophe, found by leaving it out.
_SINGLE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
# Contractions with more, found by leaving out any one.
_SEVERAL = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've "
    "something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at"
)


def _without_one_apostrophe(text: str) -> list[str]:
    return [text[:index] + text[index + 1 :] for index, character in enumerate(text) if character == "'"]


_CONTRACTIONS = {
    spelling: word for word in f"{_SINGLE} {_SEVERAL}".split() for spelling in _without_one_apostrophe(word)
} | {"somebody'd": "somebodyd"}  # the published table has this one the wrong way round


def normalize_answer(text: str) -> str:
    """An answer as answers are compared and counted: normalised as by the challenge, but never to nothing.

    A text of articles keeps them, one of punctuation keeps it: both may be the name of an option.

    >>> normalize_answer("The two dogs!")
    '2 dogs'
    >>> normalize_answer("(A)")
    'a'
    """
    return _without_articles(text) or " ".join(_spelt_words(strip_punctuation(text)) or text.lower().split())


def _without_articles(text: str) -> str:
    """The challenge's own normalisation, of some texts nothing."""
    return " ".join(word for word in _spelt_words(strip_punctuation(text)) if word not in _ARTICLES)


def _spelt_words(text: str) -> list[str]:
    """Words in lower case, number words as digits, contractions with their apostrophe."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return [_CONTRACTIONS.get(word, word) for word in words]


def strip_punctuation(text: str) -> str:
    """Without punctuation: removed beside a space or when a number has a comma, else a space takes its place."""
    text = _on_one_line(text)
    number_with_comma = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if beside_space or number_with_comma else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Accuracy of an answer against the annotators', from 0 to 1, by the rule at the top of this file.

    It is the challenge's figure to the letter (which its program prints as a percentage with two decimals), but for an
    answer that is empty or white space: that scores 0, whatever annotators left empty.

    Args:
        answer: What the model said.
        annotators: What each annotator said, ten in VQAv2.

    Raises:
        UsageError: There are fewer than two annotators: leaving one out leaves none. Use ``exact_match``.
    """
    if len(annotators) < 2:
        raise UsageError(f"VQA accuracy needs at least 2 annotators, got {len(annotators)}; use exact match.")
    given, known = _on_one_line(answer), [_on_one_line(text) for text in annotators]
    if not given:
        return 0.0
    if len(set(known)) > 1:
        given, known = _without_articles(given), [_without_articles(text) for text in known]
    matches = [text == given for text in known]
    total = sum(matches)
    return sum(min(1.0, (total - left_out) / 3) for left_out in matches) / len(matches)


def exact_match(answer: str, annotators: Sequence[str]) -> bool:
    """Whether an answer is the annotators' most frequent one, or one of those that are equally frequent.

    Both are normalised first. An empty answer never matches, and annotators who said nothing do not count.
    """
    votes = Counter(normalize_answer(text) for text in annotators if text.strip())
    if not votes or not answer.strip():
        return False
    return votes[normalize_answer(answer)] == max(votes.values())


def soft_score(annotators: int) -> float:
    """The training score of an answer that so many annotators gave (``get_score`` in ViLT's data writer)."""
    return (0.0, 0.3, 0.6, 0.9)[annotators] if annotators < 4 else 1.0


def most_frequent_answer(annotators: Sequence[str]) -> str:
    """The answer given most often, however it was spelt, in its most frequent spelling; of several the first.

    Annotators who said nothing do not vote, unless nobody said anything.

    >>> most_frequent_answer(["2", "two", "2.", "3", "3"])
    '2'

    Raises:
        UsageError: There are no annotators.
    """
    if not annotators:
        raise UsageError("At least one annotator is needed.")
    voters = [text for text in annotators if text.strip()] or list(annotators)
    if len(set(voters)) == 1:
        return voters[0]
    answers = [normalize_answer(text) for text in voters]
    votes = Counter(answers)
    winner = max(votes, key=lambda answer: votes[answer])  # of equals the first that was given
    spellings = Counter(text for text, answer in zip(voters, answers, strict=True) if answer == winner)
    return max(spellings, key=lambda text: spellings[text])
