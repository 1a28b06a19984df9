"""The small frozen records that travel between the packages. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from lorax_vlm.errors import UsageError

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
    """None decodes deterministically; a value samples."""
    top_p: float = 1.0
    """Only with a temperature: sample from the smallest set of tokens with this probability."""
    seed: int | None = None
    """Only with a temperature: makes the sample repeatable."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.min_new_tokens < 0 or self.min_new_tokens > self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens={self.min_new_tokens} and max_new_tokens={self.max_new_tokens} must satisfy "
                "0 <= min <= max and max >= 1."
            )
        if self.num_beams < 1:
            raise UsageError(f"num_beams must be at least 1, got {self.num_beams}.")
        if self.temperature is not None and self.temperature <= 0:
            raise UsageError(f"temperature must be above 0, got {self.temperature}. For greedy decoding leave it out.")

    def replace(self, **changes: Any) -> "GenerationSettings":
        """A copy with some fields changed."""
        return replace(self, **changes)


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
