"""An adapter beside its base, measured by what it is for."""

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.world.skills import require_scenes, skill_examples
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.captions import compare_captions
from lorax_vlm.evaluation.questions import compare_reports
from lorax_vlm.evaluation.results import Comparison
from lorax_vlm.measuring.captions import CaptionMeasurement, measure_captions, scene_styles
from lorax_vlm.measuring.questions import Answerer, measure_questions
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.workshop.orders import Data, as_splits


def compare_with_base(
    bases: Bases, base: str, name: str, stored: StoredAdapter, data: Data | None, *, count: int, include_seen: bool
) -> Comparison:
    """Measure an adapter and its base on the same images; what can be told to be no measurement loads nothing.

    Args:
        bases: The door to the base.
        base: Its own.
        name: What the reports call the adapter.
        stored: The adapter.
        data: With answers or references. None: held-out scenes.
        count: Of scenes.
        include_seen: Ask about images that it was trained on, too.

    Raises:
        UsageError: There is neither ``data`` nor a miniature world for this base, or it has seen all images.
    """
    splits, entry = as_splits(data) if data is not None else None, bases.entry(base)
    if not answers_questions(stored.manifest):
        asked = CaptionMeasurement({name: stored}, data=splits, count=count, include_seen=include_seen)
        scene_styles(entry, asked)
        with bases.use(base) as engine:
            *others, own = measure_captions(engine, asked)
        alone = next(report for report in others if getattr(report, "style", None) == getattr(own, "style", None))
        return Comparison(alone, own, compare_captions(alone, own))
    examples, source = _questions(entry, stored, splits, count)
    unseen = unseen_examples({name: stored}, examples, include_seen=include_seen)
    with bases.use(base) as engine:
        before, after = (
            measure_questions(engine, who, unseen, source=source) for who in (Answerer(), Answerer(name, stored, name))
        )
    return Comparison(before, after, compare_reports(before, after))


def _questions(
    entry: CatalogEntry, stored: StoredAdapter, splits: DataSplits | None, count: int
) -> tuple[list[Example], str]:
    """Questions to ask, and what they are."""
    if splits is not None:
        return list(splits.require_kind("questions").select("all")), splits.source
    if not entry.miniature or stored.manifest.skill is None:
        raise UsageError(f"{entry.name} has no built-in test questions for {stored.name!r}. Pass data=.")
    skill = require_scenes(stored.manifest.skill)
    return skill_examples(skill, "test", count), f"scenes, {skill.name}, {count} held out"
