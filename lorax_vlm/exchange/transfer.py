"""Moving an adapter to another base, and measuring what is left of it.

What can be taken over is taken over; what cannot is learnt from the source's answers to images nobody labelled. A
measured score decides whether the result is kept, not a fingerprint: it must beat the target alone, and random updates
of the same size.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lorax_vlm.adapters.compatibility import Level
from lorax_vlm.adapters.durable import run_folder
from lorax_vlm.adapters.factors import Updates, read_updates
from lorax_vlm.adapters.files import AdapterBytes, read_adapter
from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.manifest import Manifest, Measurement, Parent
from lorax_vlm.adapters.ownership import require_storable
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.seen import SeenImages, write_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import Ask, answers_questions, ask_of, ask_on
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import TransferRefused
from lorax_vlm.evaluation.seen import Heritage, identities
from lorax_vlm.exchange.bench import Bench, Candidate
from lorax_vlm.exchange.candidates import copies, random_like
from lorax_vlm.exchange.direction import Direction, TransferOptions
from lorax_vlm.exchange.plan import TransferPlan, plan_transfer
from lorax_vlm.exchange.report import Cost, Scored, TransferReport
from lorax_vlm.exchange.teacher import Lesson, answer, ask_teacher, make_lesson
from lorax_vlm.exchange.transfer_data import TransferData, judge_by_target, require_enough, score_texts
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.settings import features_dir
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from lorax_vlm.types import ENOUGH, Interval
from lorax_vlm.workshop.fitting import fit_to_labels
from lorax_vlm.workshop.intake import addition, made_on
from lorax_vlm.workshop.sampling import sampler

QUICK_SHARE = 0.25
"""Share of the target's usual steps that distillation takes by default."""
GOOD_ENOUGH = 0.95
"""Share of the source's gain from which on nothing is distilled."""


@dataclass(frozen=True)
class PreparedTransfer:
    """A measured result that is not in the store (yet)."""

    report: TransferReport
    bases: Bases
    target: str
    """The base."""
    stored: StoredAdapter
    """The source."""
    chosen: "Candidate"
    ask: Ask
    """How it was asked on the target."""
    heritage: Heritage
    """What the source and the result were trained on."""

    @property
    def refused(self) -> bool:
        """Whether it is not worth keeping."""
        return bool(self.report.reasons)

    def keep(self, new_name: str, *, replace: bool = False) -> TransferReport:
        """Store it on the target, if it is worth keeping; returns the report with the name it has then.

        Args:
            new_name: For the result.
            replace: Make a new version when the name exists.

        Raises:
            AdapterExists: ``new_name`` is taken.
            TransferRefused: What would be stored is not what was measured.
        """
        if self.refused:
            return self.report
        self.bases.store.add_all([self.addition(new_name, replace=replace)], replace=replace)
        return self.kept_as(new_name)

    def addition(self, new_name: str, *, replace: bool = False) -> Addition:
        """What ``keep`` would store, checked against the target, which is loaded for it.

        Raises:
            AdapterExists: ``new_name`` is taken.
            TransferRefused: It is not what was measured.
        """
        with self.bases.use(self.target) as engine:
            return _addition(engine, self, new_name, replace)

    def kept_as(self, name: str) -> TransferReport:
        """The report of a result that was stored."""
        return dataclasses.replace(self.report, adapter=name)


def transfer_adapter(bases: Bases, way: Direction, *, replace: bool = False) -> TransferReport:
    """Move an adapter to another base and store it there under a new name, if it is worth anything there.

    Raises:
        TransferRefused: There is no way, or none with these data; nothing was changed.
        AdapterExists: The new name is taken.
        PathError: The store cannot be written; nothing was worked out.
    """
    require_storable(bases.store, bases.owner(way.target), way.new_name, replace=replace)
    with prepared_transfer(bases, way) as prepared:
        return prepared.keep(way.new_name, replace=replace)


@contextmanager
def prepared_transfer(bases: Bases, way: Direction) -> Iterator[PreparedTransfer]:
    """Move an adapter to another base without storing it; its files last as long as the block.

    The source is asked first and not needed afterwards, so that one base need be in memory at a time, and none during
    the block.

    Raises:
        TransferRefused: There is no way, or none with these data.
    """
    data, options = way.data, way.options
    stored, adapter = bases.store.read_bytes(way.name)
    if not options.distil:
        data = dataclasses.replace(data, unlabelled=())
    target = bases.describe(way.target, fetch=True)
    images = len(data.unlabelled)
    plan = plan_transfer(adapter, stored.manifest, target, images=images, allow_partial=options.allow_partial)
    if plan.refused:
        raise TransferRefused(way.name, plan.target, plan.reasons)
    require_enough(way.name, plan.target, data)
    with bases.use(way.source) as engine:
        asked = _ask_source(engine, stored, plan, data)
    judge = data.judge if asked.measured_by == "labels" else judge_by_target
    with run_folder(options.run_dir) as scratch:
        with bases.use(way.target) as engine:
            ask = ask_on(engine.entry, bases.entry(way.source), stored.manifest)
            bench = Bench(engine, ask, asked.development, judge, scratch)
            report, chosen = _transfer(bench, asked, plan, read_updates(adapter), stored, data, options)
        heritage = _heritage(chosen, adapter, stored.manifest, data)
        yield PreparedTransfer(report, bases, way.target, stored, chosen, ask, heritage)


@dataclass(frozen=True)
class _Asked:
    """All that is needed of the source's base; it may leave memory then."""

    lesson: Lesson | None
    development: Sequence[Example]
    measured_by: str
    source: Scored | None
    seconds: float


def _ask_source(engine: BaseEngine, stored: StoredAdapter, plan: TransferPlan, data: TransferData) -> _Asked:
    start = time.monotonic()
    settings = ask_of(engine.entry, stored.manifest, question=answers_questions(stored.manifest)).settings
    lesson = None
    if data.unlabelled and plan.label != "exact":
        answers = ask_teacher(engine, stored.reference, data.unlabelled, settings)
        lesson = make_lesson(data.unlabelled, answers, fewest_held_out=1 if data.development else ENOUGH)
    if data.development:
        texts = answer(engine, stored.reference, data.development, settings)
        scored = score_texts("source on its own base", data.judge, data.development, texts)
        return _Asked(lesson, data.development, "labels", scored, time.monotonic() - start)
    if lesson is None:
        missing = "no labelled development examples, and no unlabelled ones that the source could answer"
        raise TransferRefused(stored.name, plan.target, [f"there is nothing to measure the result with: {missing}"])
    return _Asked(lesson, lesson.splits.validation, "agreement", None, time.monotonic() - start)


def _transfer(
    bench: Bench,
    asked: _Asked,
    plan: TransferPlan,
    updates: Updates,
    stored: StoredAdapter,
    data: TransferData,
    options: TransferOptions,
) -> tuple[TransferReport, Candidate]:
    alone = bench.score("target alone")
    candidates, controls = _take_over(bench, plan, updates)
    if asked.lesson is not None and (plan.needs_images or not _is_good(candidates, alone, asked)):
        candidates.append(_distil(bench, plan, asked.lesson, _best(candidates), options))
    chosen = _best(candidates)
    assert chosen is not None  # a plan that is not refused has something to try
    reasons = _objections(chosen.scored, alone, controls)
    label = plan.label
    if chosen.scored.name == "distilled" and label in ("component-copy", "approximate"):
        label = "distilled"
    off_task = None
    if data.off_task:
        before, after = (bench.score_others(data.off_task, folder, chosen.labels) for folder in (None, chosen.folder))
        off_task = (before, after)
    cost = Cost(
        teacher_s=asked.seconds,
        search_s=bench.seconds,
        training_s=sum(candidate.training_s for candidate in candidates),
        steps=max(candidate.steps for candidate in candidates),
        source_steps=stored.manifest.training.get("steps"),
        images=asked.lesson.asked if asked.lesson else 0,
        kept=asked.lesson.kept if asked.lesson else 0,
        labels=len(data.development),
    )
    report = TransferReport(
        plan=plan,
        label="refused" if reasons else label,
        adapter=None,
        chosen=chosen.scored.name,
        measured_by=asked.measured_by,
        alone=alone,
        candidates=tuple(candidate.scored for candidate in candidates),
        controls=tuple(controls),
        source=asked.source,
        off_task=off_task,
        coverage=chosen.coverage,
        cost=cost,
        seen=data.seen,
        reasons=tuple(reasons),
    )
    return report, chosen


def _take_over(bench: Bench, plan: TransferPlan, updates: Updates) -> tuple[list[Candidate], list[Scored]]:
    """What needs no training, and random updates of the same size."""
    if not plan.copied_sites:
        return [], []
    moved = [part for part in plan.parts if part.strategy in ("load", "copy")]
    same = all(part.level in (Level.IDENTICAL, Level.SAME_COMPONENT) for part in moved)
    candidates = []
    for name, some in copies(updates, plan.copied_sites, same_weights=same).items():
        folder = bench.write(name, some)
        candidates.append(Candidate(bench.score(name, folder), folder))
    like = random_like({site: updates[site] for site in plan.copied_sites})
    return candidates, [bench.score("random, same spectrum", bench.write("random", like))]


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: candidate.scored.mean.value, default=None)


def _is_good(candidates: Sequence[Candidate], alone: Scored, asked: _Asked) -> bool:
    """Whether the best candidate has nearly all of what the source gains."""
    best = _best(candidates)
    if best is None or asked.source is None:
        return False
    gain = asked.source.mean.value - alone.mean.value
    return best.scored.mean.value - alone.mean.value >= GOOD_ENOUGH * gain


def _distil(
    bench: Bench, plan: TransferPlan, lesson: Lesson, start: Candidate | None, options: TransferOptions
) -> Candidate:
    """Train the target on the source's answers, beginning with the best candidate."""
    begin = read_updates(read_adapter(start.folder, start.scored.name)) if start is not None else {}
    recipe = Recipe(
        "transferred",
        rank=max([plan.rank, *(update.rank for update in begin.values())]),
        groups=plan.student_groups,
        modules=tuple(sorted(begin)),
    )
    base, splits = bench.engine.base, lesson.splits
    labels: tuple[str, ...] = ()
    coverage = ""
    splits = splits.with_prompt(bench.ask.template)
    splits, label_plan = fit_to_labels(base.family, splits)
    if label_plan is not None:
        labels = label_plan.labels if label_plan.added else ()
        coverage = label_plan.summary()
    run_dir, began = bench.run_dir / "distilled", time.monotonic()
    student = AdapterPlan(run_dir.name, recipe, splits, options.config, labels)
    student = dataclasses.replace(student, sample=sampler(bench.engine, student, bench.ask.settings))
    result = train_adapter(base, student, run_dir, progress=options.progress, features_dir=features_dir(), start=begin)
    trained_s = time.monotonic() - began
    scored = bench.score("distilled", result.folder, labels)
    return Candidate(scored, result.folder, labels, result.steps, trained_s, coverage)


def _objections(chosen: Scored, alone: Scored, controls: Sequence[Scored]) -> list[str]:
    """Why the best candidate is not worth keeping: it must beat the target alone and every control beyond the noise."""
    reasons = []
    for other in (alone, *controls):
        gain = chosen.gain_over(other)
        if not gain.above_zero:
            reasons.append(f"not better than {other.name}: {gain.points()}")
    return reasons


def _heritage(chosen: Candidate, source: AdapterBytes, manifest: Manifest, data: TransferData) -> Heritage:
    """What a result learnt from: the source's images, and those it was distilled with."""
    own = Heritage.of(manifest, source.seen)
    if not chosen.steps:
        return own
    taught = SeenImages.of(example.image_digest() for example in data.unlabelled)
    return Heritage.joined([own, Heritage(taught, identities(data.unlabelled))])


def _addition(engine: BaseEngine, prepared: PreparedTransfer, new_name: str, replace_existing: bool) -> Addition:
    """The result with where it came from and what it scored; the checks of every stored adapter apply."""
    chosen, report, source = prepared.chosen, prepared.report, prepared.stored.manifest
    interval: Interval = chosen.scored.mean
    figure = Measurement(
        metric=report.measured_by,
        data=f"{len(report.alone.scores)} development examples",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        count=len(report.alone.scores),
    )
    manifest = Manifest(
        name=new_name,
        base=None,
        skill=source.skill,
        recipe="transferred",
        prompt=prepared.ask.template,
        trained=True,
        generation=prepared.ask.settings,
        training={
            "transfer": report.label,
            "steps": chosen.steps,
            "data": f"transferred from {prepared.stored.reference}",
            **prepared.heritage.facts(),
        },
        labels=tuple(chosen.labels),
        metrics=(figure,),
        lineage=(
            Parent(
                name=prepared.stored.name,
                manifest=prepared.stored.digest,
                method=report.label,
                parameters={"chosen": report.chosen, "source_base": report.plan.source, "steps": chosen.steps},
            ),
            *source.lineage,
        ),
        licence="; ".join(dict.fromkeys(filter(None, (source.licence, engine.entry.licence)))),
    )
    write_seen(chosen.folder, prepared.heritage.images)
    made = addition(engine, chosen.folder, made_on(engine, manifest), replace=replace_existing)
    _require_effect(made, report.plan, chosen)
    return made


def _require_effect(made: Addition, plan: TransferPlan, chosen: Candidate) -> None:
    """What is to be stored has the planned sites, none without an effect, and changes what is answered.

    Raises:
        TransferRefused: It is not what was measured.
    """
    assert isinstance(made.source, AdapterBytes)  # read by the library
    updates = read_updates(made.source)
    problems = [f"{site} is missing" for site in plan.copied_sites if site not in updates]
    if chosen.scored.name != "distilled":
        problems += [f"{site} has no effect" for site, update in updates.items() if not update.norm]
    if made.manifest.canary is None or not made.manifest.canary.largest_change:
        problems.append("no logit changes with it")
    if problems:
        raise TransferRefused(made.name, plan.target, problems)
