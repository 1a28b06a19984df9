"""What a transfer did and what it was measured against. Plain records and their text; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorax_vlm.evaluation.bootstrap import mean_interval, paired_difference, retention
from lorax_vlm.exchange.plan import Label, TransferPlan
from lorax_vlm.types import Interval


@dataclass(frozen=True)
class Scored:
    """One thing that was asked the development questions."""

    name: str
    scores: tuple[float, ...]
    """One per question, 0 to 1, the same questions in the same order for all."""

    @property
    def mean(self) -> Interval:
        """With its 95 % interval."""
        return mean_interval(self.scores)


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
    labels: int = 0
    """Labelled examples used to choose among candidates; none were trained on."""


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
    """Best last chosen; those without training first."""
    controls: tuple[Scored, ...] = ()
    source: Scored | None = None
    """The source's own adapter on the source's base, where labels are known."""
    off_task: tuple[Interval, Interval] | None = None
    """Score on other questions: the target alone, and with the adapter."""
    cost: Cost = field(default_factory=Cost)
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
        return paired_difference(self.alone.scores, self.final.scores)

    @property
    def of_source(self) -> Interval | None:
        """Share of what the source's adapter gains over the target alone; None where that cannot be measured."""
        if self.source is None:
            return None
        return retention(self.final.scores, self.alone.scores, self.source.scores)

    def retained(self, native: Sequence[float]) -> Interval | None:
        """Share of a native adapter's gain; None where that is too small to be measured.

        Args:
            native: Scores of an adapter that was trained on the target itself, on the same questions.
        """
        return retention(self.final.scores, self.alone.scores, native)

    def lines(self) -> list[str]:
        """For people."""
        stored = f"stored as {self.adapter!r}" if self.accepted else "nothing was stored"
        lines = [*self.plan.lines(), f"  {self.label}: {self.chosen}; {stored}"]
        rows = [self.alone, *self.controls, *self.candidates, *([self.source] if self.source else [])]
        lines += [f"    {row.name:<28} {_percent(row.mean)}" for row in rows]
        lines.append(f"  gain over the target alone {_points(self.gain)}, by {self.measured_by}")
        if self.source is not None:
            lines.append(f"  share of the source's gain: {_share(self.of_source)}")
        if self.off_task is not None:
            before, after = self.off_task
            lines.append(f"  other questions: {_percent(before)} alone, {_percent(after)} with it")
        cost = self.cost
        lines.append(
            f"  cost: {cost.images} unlabelled answers in {cost.teacher_s:.0f} s, search {cost.search_s:.0f} s, "
            f"training {cost.training_s:.0f} s ({cost.steps} steps"
            + (f", the source took {cost.source_steps}" if cost.source_steps else "")
            + f"), {cost.labels} labels to choose with"
        )
        return [*lines, *(f"  {reason}" for reason in self.reasons)]


def _percent(interval: Interval) -> str:
    return f"{interval.value:6.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} points ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _share(interval: Interval | None) -> str:
    return "not measurable" if interval is None else f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"
