"""An adapter beside its base, measured by what it is for."""

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, captions_only
from lorax_vlm.evaluation.captions import compare_captions
from lorax_vlm.evaluation.questions import compare_reports
from lorax_vlm.evaluation.results import Comparison
from lorax_vlm.measuring.captions import CaptionMeasurement, measure_captions, plan_captions
from lorax_vlm.measuring.questions import Answerer, built_in_questions, measure_questions, unseen_by
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
    unknown = stored.manifest.skill is None and not answers_questions(stored.manifest)  # then the data decide
    if captions_only(stored.manifest) or (unknown and (splits is None or splits.kind == "captions")):
        wanted = CaptionMeasurement({name: stored}, data=splits, count=count, include_seen=include_seen)
        planned = plan_captions(entry, wanted)
        with bases.use(base) as engine:
            *others, own = measure_captions(engine, planned)
        alone = next(report for report in others if getattr(report, "style", None) == getattr(own, "style", None))
        return Comparison(alone, own, compare_captions(alone, own))
    if splits is not None:
        examples, source = list(splits.require_kind("questions").select("all")), splits.source
    else:
        examples, source = built_in_questions(entry, stored.manifest.skill, count, instead="data=")
    both = Answerer(), Answerer(name, stored, name)
    unseen = unseen_by(both, examples, include_seen=include_seen)
    with bases.use(base) as engine:
        before, after = (measure_questions(engine, who, unseen, source=source) for who in both)
    return Comparison(before, after, compare_reports(before, after))
