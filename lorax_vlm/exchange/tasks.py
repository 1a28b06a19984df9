"""How well an adapter does what it is for, beside its base, on the same examples: the measure that transfers use."""

from collections.abc import Sequence

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, ask_of
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.skills import skill_examples
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.intervals import mean_interval, numbers_of, paired_difference
from lorax_vlm.evaluation.results import TaskReport
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.exchange.transfer_data import judge_all, judge_by_target
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import Skill


def measure_task(
    engine: BaseEngine,
    stored: StoredAdapter,
    *,
    skill: Skill | None = None,
    examples: Sequence[Example] | None = None,
    count: int = 300,
    include_seen: bool = False,
) -> TaskReport:
    """Measure an adapter and its base on the same examples: exact answers, with paired intervals.

    Args:
        engine: Of its base.
        stored: The adapter.
        skill: What scenes ask for. None: what the adapter is for.
        examples: With targets. None: ``count`` held-out scenes of the miniature world.
        count: Number of scenes.
        include_seen: Ask about images that it was trained on, too.

    Raises:
        UsageError: There are neither ``examples`` nor a miniature world for this base, or it has seen all of them.
    """
    name, skill = stored.name, skill or stored.manifest.skill
    if examples is None:
        if skill is None:
            raise UsageError(f"Adapter {name!r} does not say what it is for. Name a task=, or pass examples=.")
        if not engine.entry.miniature:
            raise UsageError(f"{engine.entry.name} has no built-in test examples. Pass examples=.")
        examples = skill_examples(skill, "test", count)
    asked = unseen_examples({name: stored}, examples, include_seen=include_seen)
    settings = ask_of(engine.entry, stored.manifest, question=answers_questions(stored.manifest)).settings
    before, after = (
        judge_all(judge_by_target, asked.examples, answer(engine, who, asked.examples, settings))
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
