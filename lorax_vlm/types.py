"""The small frozen records that travel between the packages. No torch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted

FinishReason = Literal["eos", "length", "empty"]
ENOUGH = 30
"""Independent examples below which nothing is said to be better or worse."""

MOST_BEAMS = 100


@dataclass(frozen=True)
class GenerationSettings:
    """How text is decoded. Every field is passed to the language model on every call.

    The language model's own stored defaults are never used: BLIP-2 ignores the outer model's, and the inner ones
    stop after 20 tokens.
    """

    max_new_tokens: int = 30
    """Upper limit of generated tokens; image tokens and the prompt do not count."""
    min_new_tokens: int = 0
    """No end token before this many tokens. Raise it when captions come out too short."""
    num_beams: int = 1
    """1 is greedy; 5 is what the BLIP-2 paper used, at five times the cost."""
    length_penalty: float = 1.0
    """Only with beams: above 0 favours long texts, below 0 short ones."""
    repetition_penalty: float = 1.0
    """Above 1 discourages tokens already generated."""
    temperature: float | None = None
    """None decodes deterministically; a value samples, from one beam."""
    top_p: float = 1.0
    """Only with a temperature: sample from the smallest set of tokens with this probability."""
    seed: int | None = None
    """Only with a temperature: makes the sample repeatable, in any batch."""
    forbid: tuple[str, ...] = ()
    """Words that are not written, nor any that begins with one of them, whatever the capitals."""

    def __post_init__(self) -> None:
        require_whole("max_new_tokens", self.max_new_tokens, 1)
        require_whole("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}: "
                "raise the latter, or lower the former."
            )
        require_whole("num_beams", self.num_beams, 1)
        if self.num_beams > MOST_BEAMS:
            raise UsageError(
                f"num_beams must be at most {MOST_BEAMS}, got {self.num_beams}: each takes a row's memory."
            )
        require_number("length_penalty", self.length_penalty, lambda value: True)
        require_number("repetition_penalty", self.repetition_penalty, lambda value: value > 0, "above 0")
        if self.temperature is not None:
            above = "above 0 (leave it out for greedy decoding)"
            require_number("temperature", self.temperature, lambda value: value > 0, above)
            if self.num_beams > 1:
                raise UsageError(
                    f"temperature samples one text, num_beams={self.num_beams} searches for the likeliest one: "
                    "use one of them."
                )
        require_number("top_p", self.top_p, lambda value: 0 < value <= 1, "above 0 and at most 1")
        if self.seed is not None:
            require_whole("seed", self.seed, 0)
        words: object = self.forbid
        if not isinstance(words, Sequence) or isinstance(words, str) or not all(map(_is_word, words)):
            raise UsageError(f"forbid must be a list of words, got {quoted(self.forbid)}.")
        object.__setattr__(self, "forbid", tuple(self.forbid))

    @classmethod
    def require_fields(cls, names: Iterable[str]) -> None:
        """Raise ``UsageError`` for names that are no decoding settings."""
        unknown = [name for name in names if name not in cls.__dataclass_fields__]
        if unknown:
            meant = "".join(f" Instead of {name}: {_OTHER_WORDS[name]}." for name in unknown if name in _OTHER_WORDS)
            known = ", ".join(cls.__dataclass_fields__)
            raise UsageError(f"Unknown decoding settings: {', '.join(unknown)}.{meant} Known: {known}.")

    def replace(self, **changes: Any) -> "GenerationSettings":
        """A copy with some fields changed; a temperature without a word about beams takes one beam.

        Raises:
            UsageError: A field is unknown, or a value cannot be.
        """
        self.require_fields(changes)
        if changes.get("temperature") is not None:
            changes.setdefault("num_beams", 1)
        return replace(self, **changes)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


# How other libraries call what is decoded here.
_OTHER_WORDS = {
    "max_length": "max_new_tokens, which does not count the prompt",
    "min_length": "min_new_tokens, which does not count the prompt",
    "do_sample": "temperature=..., which samples when it is given",
    "num_return_sequences": "one row for each text that is wanted, each with a seed",
    "no_repeat_ngram_size": "repetition_penalty",
    "beams": "num_beams",
    "bad_words_ids": "forbid=[...], of words",
}


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``UsageError`` for a keyword that nobody knows: else a misspelt one would change nothing."""
    names = list(known)
    if unknown := [name for name in given if name not in names]:
        raise UsageError(f"Unknown option {quoted(unknown[0])}. Known: {', '.join(names)}.")


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise ``UsageError`` unless a setting is a whole number of at least ``least``, and one that 63 bits hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise UsageError(f"{name} must be a whole number of at least {least}, got {quoted(value)}.")


def require_text(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless a setting is a text."""
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, got {quoted(value)}.")


def require_flag(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless a setting is true or false; ``"no"`` is neither."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be True or False, got {quoted(value)}.")


def require_texts(name: str, value: Any) -> None:
    """Raise ``UsageError`` unless a setting is a list of texts; one text is none, for it would be read by letters."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UsageError(f"{name} must be a list of texts, got {quoted(value)}.")


def require_texts_by_name(name: str, value: Any, names: Sequence[str]) -> None:
    """Raise ``UsageError`` unless a setting is lists of texts by name, and no name is other than these."""
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} must be lists of texts by name, got {quoted(value)}.")
    for key, texts in value.items():
        if key not in names:
            raise UsageError(f"{name} has {quoted(key)}, which is not asked; asked are {', '.join(names)}.")
        require_texts(f"{name}[{quoted(key)}]", texts)


def require_number(name: str, value: Any, holds: Callable[[float], bool], said: str = "") -> None:
    """Raise ``UsageError`` unless a setting is a finite number that holds; ``said`` is the rule in words."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < math.inf or not holds(value):
        raise UsageError(f"{name} must be a number{f' {said}' if said else ''}, got {quoted(value)}.")


@dataclass(frozen=True)
class Generated:
    """One generated text, without the prompt.

    ``finish`` is ``"eos"`` when the model ended by itself, ``"length"`` at the token limit, and ``"empty"`` when the
    first token already was the end: a text that is empty because the model said nothing, not because of an error.
    """

    text: str
    finish: FinishReason
    tokens: int


class ModelText(str):
    """Plain text that also knows what made it."""

    adapter: str | None
    """Name of the adapter, None for the plain base."""
    base: str
    finish: FinishReason
    tokens: int

    @classmethod
    def of(cls, generated: Generated, base: str, adapter: str | None) -> Self:
        """Wrap a generated text."""
        text = cls(generated.text)
        text.adapter, text.base, text.finish, text.tokens = adapter, base, generated.finish, generated.tokens
        return text

    @classmethod
    def by(cls, said: "ModelText", adapter: str | None) -> Self:
        """The same text as one of this class, by what an adapter is called."""
        return cls.of(Generated(str(said), said.finish, said.tokens), said.base, adapter)


class Caption(ModelText):
    """What a base or an adapter says of an image."""


class Answer(ModelText):
    """What a base or an adapter answers to a question about an image."""


def counted(number: int, noun: str) -> str:
    """A number of things for people.

    >>> counted(1, "image"), counted(1200, "row")
    ('1 image', '1,200 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 1) -> str:
    """A share as people read it.

    >>> percent(0.372), percent(0.372, 0)
    ('37.2 %', '37 %')
    """
    return f"{100 * share:.{digits}f} %"


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval, and how many examples it is the figure of."""

    value: float
    low: float
    high: float
    count: int = 0
    """Examples; 0 where that is not known."""
    groups: int = 0
    """Independent ones: groups where data are grouped, else images; as many as examples if each is of its own."""

    @property
    def few(self) -> bool:
        """Whether there are too few independent examples for any verdict."""
        return self.groups < ENOUGH

    @property
    def above_zero(self) -> bool:
        """Whether a difference is a gain beyond the noise."""
        return not self.few and self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether a difference is a loss beyond the noise."""
        return not self.few and self.high < 0

    @property
    def caution(self) -> str:
        """What speaks against a verdict, for people; empty when nothing does."""
        if not self.few:
            return ""
        examples = f"{self.count} example{'' if self.count == 1 else 's'}" if self.count else "how many is not known"
        plural = "" if self.groups == 1 else "s"
        of_what = f" of {self.groups} image{plural} or group{plural}" if self.groups != self.count else ""
        return f"too few to tell: {examples}{of_what}"

    def percent(self, width: int = 0) -> str:
        """A share as text, its value aligned right in ``width``."""
        return f"{percent(self.value):>{width}} ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def points(self, unit: str = " points") -> str:
        """A difference of shares as text, with the word that it is of too few."""
        value, low, high = (f"{round(100 * part, 1) + 0.0:+.1f}" for part in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high}{f', {self.caution}' if self.few else ''})"


ImageVerdict = Literal["depends", "ignored", "cannot tell"]
