"""The small frozen records that travel between the packages. No torch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted

FinishReason = Literal["eos", "length", "empty"]


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

    def __post_init__(self) -> None:
        require_whole("max_new_tokens", self.max_new_tokens, 1)
        require_whole("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}: "
                "raise the latter, or lower the former."
            )
        require_whole("num_beams", self.num_beams, 1)
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

    def replace(self, **changes: Any) -> "GenerationSettings":
        """A copy with some fields changed; a temperature without a word about beams takes one beam.

        Raises:
            UsageError: A field is unknown, or a value cannot be.
        """
        unknown = [name for name in changes if name not in self.__dataclass_fields__]
        if unknown:
            meant = "".join(f" Instead of {name}: {_OTHER_WORDS[name]}." for name in unknown if name in _OTHER_WORDS)
            known = ", ".join(self.__dataclass_fields__)
            raise UsageError(f"Unknown decoding settings: {', '.join(unknown)}.{meant} Known: {known}.")
        if changes.get("temperature") is not None:
            changes.setdefault("num_beams", 1)
        return replace(self, **changes)


# How other libraries call what is decoded here.
_OTHER_WORDS = {
    "max_length": "max_new_tokens, which does not count the prompt",
    "min_length": "min_new_tokens, which does not count the prompt",
    "do_sample": "temperature=..., which samples when it is given",
    "num_return_sequences": "one row for each text that is wanted, each with a seed",
    "no_repeat_ngram_size": "repetition_penalty",
    "beams": "num_beams",
}


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise ``UsageError`` unless a setting is a whole number of at least ``least``, and one that 63 bits hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise UsageError(f"{name} must be a whole number of at least {least}, got {quoted(value)}.")


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


class Caption(ModelText):
    """What a base or an adapter says of an image."""


class Answer(ModelText):
    """What a base or an adapter answers to a question about an image."""


@dataclass(frozen=True)
class CaptionReport:
    """Figures of one adapter, or of the base, against scenes whose truth is known. Shares are from 0 to 1."""

    adapter: str | None
    base: str
    style: str
    count: int
    in_style: float
    """Share of captions with the form of the style."""
    true: float
    """Share of captions whose every claim holds and that miss no object."""
    in_style_and_true: float
    finished: float
    """Share that ended by themselves, not at the token limit."""
    time_s: float
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What was measured how. Only reports with equal protocols can be compared."""
    failures: tuple[Mapping[str, Any], ...] = ()
    """The first captions that are not both in style and true, with the reference."""


@dataclass(frozen=True)
class ReferenceReport:
    """Figures of one adapter, or of the base, against reference captions."""

    adapter: str | None
    base: str
    source: str
    count: int
    exact_match: float
    """Share of captions equal to the reference, case and punctuation at the end aside."""
    loss: float
    """Cross-entropy per target token of the references, in nats."""
    time_s: float
    text_metrics: Mapping[str, float] = field(default_factory=dict)
    """CIDEr, BLEU-4 and ROUGE-L; empty when their library is not installed."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    """The first captions that differ from their reference."""


@dataclass(frozen=True)
class AnswerRecord:
    """One answered question of an evaluation."""

    example: str
    kind: str
    question: str
    answer: str
    """Empty when the question could not be asked; see ``error``."""
    annotators: tuple[str, ...]
    score: float
    """From 0 to 1 by the report's metric."""
    error: str = ""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def percent(self, width: int = 0) -> str:
        """A share as text, its value aligned right in ``width``."""
        return f"{f'{self.value:.1%}':>{width}} ({self.low:.1%} to {self.high:.1%})"

    def points(self, unit: str = " points") -> str:
        """A difference of shares as text."""
        return f"{100 * self.value:+.1f}{unit} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


@dataclass(frozen=True)
class VQAReport:
    """Figures of one adapter, or of the base, on questions with known answers. Shares are from 0 to 1."""

    adapter: str | None
    base: str
    source: str
    metric: str
    """``vqa accuracy`` where several annotators answered, else ``exact match``."""
    accuracy: Interval
    by_kind: Mapping[str, Interval]
    """Accuracy by type of question."""
    records: tuple[AnswerRecord, ...]
    time_s: float
    blank: float | None = None
    """Accuracy with every image grey; None when it was not measured."""
    shuffled: float | None = None
    """Accuracy with each question put to another question's image."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What was measured how. Only reports with equal protocols can be compared."""

    @property
    def count(self) -> int:
        """Number of questions."""
        return len(self.records)


@dataclass(frozen=True)
class BenchmarkRow:
    """Cost and quality of one base, with or without an adapter."""

    model: str
    adapter: str | None
    accuracy: float | None
    """None without known answers."""
    by_kind: Mapping[str, float]
    latency_p50_s: float
    """Median time of one question alone."""
    latency_p95_s: float
    questions_per_s: float
    """In batches."""
    tokens_per_s: float
    """Generated tokens, in batches."""
    peak_bytes: int
    """Most memory during the run: of the GPU's allocator, or resident memory of the process on a CPU."""


@dataclass(frozen=True)
class TaskReport:
    """How an adapter and its base do a task: the share of exact answers to the same examples."""

    adapter: str
    base: str
    task: str
    count: int
    before: Interval
    """The plain base."""
    after: Interval
    """With the adapter."""
    gain: Interval
    """Paired difference."""

    def line(self) -> str:
        """For people."""
        return (
            f"{self.adapter}: {self.task}, {self.count} examples: {self.before.value:.1%} -> {self.after.value:.1%} "
            f"({100 * self.gain.value:+.1f} points, 95 %: {100 * self.gain.low:+.1f} to {100 * self.gain.high:+.1f})"
        )
