"""What was measured: figures with their intervals, and what they are figures of. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorax_vlm.types import ImageVerdict, Interval, percent


@dataclass(frozen=True)
class SeenShare:
    """How many of the images that are asked about an adapter was trained on."""

    adapter: str
    images: int
    """Different images that were asked about."""
    seen: int | None
    """None: not known, as for an adapter that was made elsewhere."""
    left_out: bool
    """Whether those are left out of the figures."""
    complete: bool = True
    """Whether the others are known not to be among those it was trained on."""

    def line(self) -> str:
        """For people."""
        if self.seen is None:
            return f"{self.adapter}: not known whether it was trained on any of these {self.images} images"
        if not self.seen:
            return f"{self.adapter}: trained on none of these {self.images} images"
        end = "they are left out" if self.left_out else "they are counted like the others"
        at_least, others = ("", "") if self.complete else ("at least ", "; of the others it is not known")
        return f"{self.adapter}: trained on {at_least}{self.seen} of these {self.images} images; {end}{others}"


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
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """Of ``in_style``, ``true`` and ``in_style_and_true``."""
    scores: tuple[float, ...] = ()
    """Of each scene, 1 for a caption that is both in style and true."""
    seen: SeenShare | None = None
    """What of these images the adapter was trained on; None for the base."""


@dataclass(frozen=True)
class ReferenceReport:
    """Figures of one adapter, or of the base, against reference captions."""

    adapter: str | None
    base: str
    source: str
    count: int
    """Images; each is captioned once, however many references it has."""
    exact_match: float
    """Share of captions equal to a reference of their image, case and punctuation at the end aside."""
    loss: float | None
    """Cross-entropy per target token over all references, in nats; None where it is not finite."""
    time_s: float
    text_metrics: Mapping[str, float | None] = field(default_factory=dict)
    """CIDEr, BLEU-4 and ROUGE-L; empty when their library is not installed. None: see ``reasons``."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[Mapping[str, Any], ...] = ()
    """The first captions that differ from all of their references."""
    interval: Interval | None = None
    """Of ``exact_match``."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a text metric has no figure, by its name."""
    scores: tuple[float, ...] = ()
    """Of each image, 1 for a caption that equals a reference."""
    units: tuple[int, ...] = ()
    """Of each image: the number of its group where data are grouped, else of itself."""
    seen: SeenShare | None = None
    """What of these images the adapter was trained on; None for the base."""


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
    """From 0 to 1 by ``metric``."""
    error: str = ""
    metric: str = ""
    """What the question is judged by: ``vqa accuracy``, or ``exact match`` where few or one annotator answered it."""
    image: int = 0
    """Number of the image: equal for questions of a report about equal images."""
    unit: int = 0
    """Number of its group where data are grouped, else of its image: what intervals take for independent."""
    bug: bool = False
    """Whether its error is a fault of this package (``RowFailed``), so that the figure cannot be trusted."""


@dataclass(frozen=True)
class ImageEffect:
    """What answers lose without the question's own image, on the questions judged by the report's metric."""

    verdict: ImageVerdict
    """``ignored``: what is right comes from the question alone."""
    reason: str
    """For people."""
    over_another: Interval | None
    """Accuracy with the own image minus that with another one, paired; None where no question could be given one."""
    over_blank: Interval
    """Accuracy with the own image minus that with a grey one, paired."""
    without_another: int
    """Questions for which there was no other image: all images are equal, or no other one could be read."""
    seed: int
    """Of the draw of the other images."""


@dataclass(frozen=True)
class VQAReport:
    """Figures of one adapter, or of the base, on questions with known answers. Shares are from 0 to 1.

    Questions with several annotators and those with few or one are judged by different metrics, which are never mixed
    into one share.
    """

    adapter: str | None
    base: str
    source: str
    metric: str
    """The metric of most questions: ``vqa accuracy`` or ``exact match``."""
    accuracy: Interval
    """Of the questions judged by ``metric``."""
    by_kind: Mapping[str, Interval]
    """Accuracy by type of question. Those of a type that are judged by the other metric have a row of their own, whose
    name says so."""
    records: tuple[AnswerRecord, ...]
    time_s: float
    blank: float | None = None
    """Accuracy with every image grey; None when it was not measured."""
    shuffled: float | None = None
    """Accuracy with another image, of the questions that could be given one; None when none could, or not measured."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """What was measured how. Only reports with equal protocols can be compared."""
    by_metric: Mapping[str, Interval] = field(default_factory=dict)
    """Accuracy by metric, that of ``metric`` first."""
    image_effect: ImageEffect | None = None
    """Whether the image matters; None when it was not asked."""
    seen: SeenShare | None = None
    """What of these images the adapter was trained on; None for the base."""

    @property
    def count(self) -> int:
        """Number of questions."""
        return len(self.records)


@dataclass(frozen=True)
class Comparison:
    """An adapter and its base on the same images."""

    base: VQAReport | CaptionReport | ReferenceReport
    adapter: VQAReport | CaptionReport | ReferenceReport
    difference: Interval
    """The adapter minus the base, paired: of accuracy, of captions in style and true, or of exact matches."""


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
    metric: str = ""
    """What ``accuracy`` is; only questions judged by it count. Empty without known answers."""
    interval: Interval | None = None
    """Of ``accuracy``."""
    failed: int = 0
    """Questions that could not be asked; they count as wrong, and in no time."""
    first_failure: str = ""
    seen: SeenShare | None = None
    """What of these images the adapter was trained on; None for the base."""


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
    seen: SeenShare | None = None
    """What of these images the adapter was trained on."""

    def line(self) -> str:
        """For people."""
        return (
            f"{self.adapter}: {self.task}, {self.count} examples: "
            f"{percent(self.before.value)} -> {percent(self.after.value)}, {self.gain.points()}"
        )
