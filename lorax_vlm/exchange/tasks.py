"""How well an adapter does what it is for, beside its base, on the same examples: the measure that transfers use."""

from collections.abc import Sequence

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import ask_of
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.skills import skill_examples
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.intervals import mean_interval, numbers_of, paired_difference
from lorax_vlm.evaluation.results import TaskReport
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.exchange.transfer_data import judge_all, judge_by_target
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import Skill


def choose_examples(
    entry: CatalogEntry, stored: StoredAdapter, skill: Skill | None, examples: Sequence[Example] | None, count: int
) -> Sequence[Example]:
    """The examples that are given, else ``count`` held-out scenes of a skill.

    Raises:
        UsageError: None are given, and no skill is named or the base has no miniature world.
    """
    if examples is not None:
        return examples
    if skill is None:
        raise UsageError(f"Adapter {stored.name!r} does not say what it is for. Name a task=, or pass examples=.")
    if not entry.miniature:
        raise UsageError(f"{entry.name} has no built-in test examples. Pass examples=.")
    return skill_examples(skill, "test", count)


def measure_task(
    engine: BaseEngine,
    stored: StoredAdapter,
    examples: Sequence[Example],
    *,
    name: str,
    skill: Skill | None = None,
    include_seen: bool = False,
) -> TaskReport:
    """Measure an adapter and its base on the same examples: exact answers, with paired intervals.

    Args:
        engine: Of its base.
        stored: The adapter.
        examples: With targets.
        name: What the report calls it.
        skill: What they ask for. None: what the adapter is for.
        include_seen: Ask about images that it was trained on, too.

    Raises:
        UsageError: It has seen all of them.
    """
    skill = skill or stored.manifest.skill
    asked = unseen_examples({name: stored}, examples, include_seen=include_seen)
    before, after = (
        judge_all(judge_by_target, asked.examples, _answers(engine, who, asked.examples, stored.manifest))
        for who in (None, stored.reference)
    )
    units = numbers_of(example.unit for example in asked.examples)
    return TaskReport(
        adapter=name,
        base=engine.entry.name,
        task=str(skill or "examples"),
        count=len(asked.examples),
        before=mean_interval(before, units),
        after=mean_interval(after, units),
        gain=paired_difference(before, after, units),
        seen=asked.of(name),
    )


def _answers(engine: BaseEngine, who: str | None, examples: Sequence[Example], manifest: Manifest) -> list[str]:
    """What the base or the adapter says, decoded in both cases as the adapter is: to questions and for captions."""
    texts = [""] * len(examples)
    for question in (False, True):
        rows = [row for row, example in enumerate(examples) if bool(example.question) == question]
        settings = ask_of(engine.entry, manifest, question=question).settings
        said = answer(engine, who, [examples[row] for row in rows], settings)
        for row, text in zip(rows, said, strict=True):
            texts[row] = text
    return texts
