"""An adapter beside its base, measured by what it is for."""

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.skills import require_scenes, skill_examples
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.captions import compare_captions
from lorax_vlm.evaluation.questions import compare_reports
from lorax_vlm.evaluation.results import Comparison
from lorax_vlm.measuring.captions import CaptionMeasurement, measure_captions
from lorax_vlm.measuring.questions import Answerer, measure_questions
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.workshop.orders import Data, as_splits


def compare_with_base(
    engine: BaseEngine, name: str, stored: StoredAdapter, data: Data | None, *, count: int, include_seen: bool
) -> Comparison:
    """Measure an adapter and its base on the same images.

    Args:
        engine: Of its base.
        name: What the reports call the adapter.
        stored: The adapter.
        data: With answers or references. None: held-out scenes.
        count: Of scenes.
        include_seen: Ask about images that it was trained on, too.

    Raises:
        UsageError: There is neither ``data`` nor a miniature world for this base, or it has seen all images.
    """
    splits = as_splits(data) if data is not None else None
    if not answers_questions(stored.manifest):
        asked = CaptionMeasurement({name: stored}, data=splits, count=count, include_seen=include_seen)
        *bases, own = measure_captions(engine, asked)
        base = next(report for report in bases if getattr(report, "style", None) == getattr(own, "style", None))
        return Comparison(base, own, compare_captions(base, own))
    examples: list[Example]
    if splits is not None:
        examples, source = list(splits.require_kind("questions").select("all")), splits.source
    else:
        if not engine.entry.miniature or stored.manifest.skill is None:
            raise UsageError(f"{engine.entry.name} has no built-in test questions for {stored.name!r}. Pass data=.")
        skill = require_scenes(stored.manifest.skill)
        examples, source = skill_examples(skill, "test", count), f"scenes, {skill.name}, {count} held out"
    unseen = unseen_examples({name: stored}, examples, include_seen=include_seen)
    before, after = (
        measure_questions(engine, who, unseen, source=source) for who in (Answerer(), Answerer(name, stored, name))
    )
    return Comparison(before, after, compare_reports(before, after))
