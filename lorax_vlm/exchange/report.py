"""What a transfer did and what it was measured against. Plain records and their text. No torch."""

from dataclasses import asdict, dataclass, field
from functools import cached_property

from lorax_vlm.answers import exact_match
from lorax_vlm.evaluation.intervals import mean_interval, paired_difference, retention
from lorax_vlm.evaluation.results import SeenShare
from lorax_vlm.exchange.plan import Label, TransferPlan
from lorax_vlm.types import Interval, percent


@dataclass(frozen=True)
class Scored:
    """One thing that was asked the development questions."""

    name: str
    scores: tuple[float, ...]
    """One per question, 0 to 1, the same questions in the same order for all."""
    texts: tuple[str, ...]
    """What was said to each."""
    images: tuple[int, ...] | None = None
    """A number for the image of each question: questions about one image are not independent. None: all have their own.
    """

    @cached_property
    def mean(self) -> Interval:
        """With its 95 % interval. Computed once, however often candidates are compared by it."""
        return mean_interval(self.scores, self.images)

    def gain_over(self, other: "Scored") -> Interval:
        """What is gained over another thing that was asked the same, with its 95 % interval."""
        return paired_difference(other.scores, self.scores, self.images)

    @property
    def silence(self) -> float:
        """Share of empty answers, 0 to 1."""
        return sum(not text.strip() for text in self.texts) / len(self.texts)


@dataclass(frozen=True)
class Cost:
    """What it took."""

    teacher_s: float = 0.0
    """Asking the source for its answers."""
    search_s: float = 0.0
    """Measuring the base, the controls and the candidates."""
    training_s: float = 0.0
    steps: int = 0
    source_steps: int | None = None
    """Steps that the source was trained for, where its manifest says."""
    images: int = 0
    """Unlabelled examples the source answered."""
    kept: int = 0
    """Of these answers, those to learn from: the source was sure enough of them."""
    labels: int = 0
    """Labelled examples used to choose among candidates; none were trained on."""

    def text(self) -> str:
        """For people."""
        taken = f", the source took {self.source_steps}" if self.source_steps else ""
        return (
            f"{self.images} unlabelled answers ({self.kept} kept) in {self.teacher_s:.0f} s, "
            f"search {self.search_s:.0f} s, training {self.training_s:.0f} s ({self.steps} steps{taken}), "
            f"{self.labels} labels to choose with"
        )


@dataclass(frozen=True)
class TransferReport:
    """The result of moving an adapter to another base."""

    plan: TransferPlan
    label: Label
    """``refused`` when nothing was stored."""
    adapter: str | None
    """Name in the store, None when nothing was stored."""
    chosen: str
    """Which candidate it is."""
    measured_by: str
    """What a score is: ``labels``, or ``agreement`` with the source's answers."""
    alone: Scored
    """The target without an adapter."""
    candidates: tuple[Scored, ...]
    """In the order tried: those without training first, then the distilled one."""
    controls: tuple[Scored, ...] = ()
    source: Scored | None = None
    """The source's own adapter on the source's base, where labels are known."""
    off_task: tuple[Interval, Interval] | None = None
    """Score on other questions: the target alone, and with the adapter."""
    coverage: str = ""
    """Which of the source's answers a target that chooses among answers can give; empty where it writes its own."""
    cost: Cost = field(default_factory=Cost)
    seen: SeenShare | None = None
    """What of the labelled images the source was trained on; None where it was not asked."""
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether an adapter was stored."""
        return self.adapter is not None

    @property
    def final(self) -> Scored:
        """Scores of the chosen candidate."""
        return next(candidate for candidate in self.candidates if candidate.name == self.chosen)

    @property
    def gain(self) -> Interval:
        """Of the chosen candidate over the target alone."""
        return self.final.gain_over(self.alone)

    @property
    def of_source(self) -> Interval | None:
        """Share of what the source's adapter gains over the target alone; None where that cannot be measured."""
        if self.source is None:
            return None
        return retention(self.final.scores, self.alone.scores, self.source.scores, self.final.images)

    @property
    def agreement(self) -> Interval | None:
        """How often the chosen candidate says what the source says; None where the source was not asked the same."""
        if self.source is None:
            return None
        said = zip(self.final.texts, self.source.texts, strict=True)
        return mean_interval([float(exact_match(mine, [its])) for mine, its in said], self.final.images)

    @property
    def rows(self) -> list[Scored]:
        """All that was asked the same questions, in the order to be shown."""
        return [self.alone, *self.controls, *self.candidates, *([self.source] if self.source else [])]

    def record(self) -> dict[str, object]:
        """All of it for JSON: the fields, and the figures that follow from them."""
        return {
            **asdict(self),
            "means": {row.name: row.mean for row in self.rows},
            "gain": self.gain,
            "of_source": self.of_source,
            "agreement": self.agreement,
        }

    def side_effects(self) -> list[str]:
        """What else is different with it, for people."""
        lines = []
        if self.agreement is not None:
            lines.append(f"says what the source says: {self.agreement.percent()}")
        if self.off_task is not None:
            before, after = self.off_task
            lines.append(f"other questions: {before.percent()} alone, {after.percent()} with it")
        return [*lines, f"empty answers: {percent(self.alone.silence)} alone, {percent(self.final.silence)} with it"]

    def lines(self) -> list[str]:
        """For people."""
        stored = f"stored as {self.adapter!r}" if self.accepted else "nothing was stored"
        lines = [*self.plan.lines(), *([f"  {self.coverage}"] if self.coverage else [])]
        lines.append(f"  {self.label}: {self.chosen}; {stored}")
        lines += [f"    {row.name:<28} {row.mean.percent(7)}" for row in self.rows]
        lines.append(f"  gain over the target alone {self.gain.points()}, by {self.measured_by}")
        if self.source is not None:
            lines.append(f"  share of the source's gain: {share_text(self.of_source)}")
        lines += [f"  {line}" for line in self.side_effects()]
        lines += [f"  {self.seen.line()}"] if self.seen is not None else []
        lines.append(f"  cost: {self.cost.text()}")
        return [*lines, *(f"  {reason}" for reason in self.reasons)]


def share_text(share: Interval | None) -> str:
    """A share of another's gain as text."""
    return "not measurable" if share is None else f"{share.value:.2f} ({share.low:.2f} to {share.high:.2f})"
