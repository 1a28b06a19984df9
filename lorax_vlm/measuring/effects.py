"""What an adapter does beside what it was trained for, and what its base's frozen image path keeps it from learning."""

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, ask_of
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.world.skills import kinds_taught
from lorax_vlm.evaluation.side_effects import (
    OtherSkill,
    SideEffects,
    compare_answers,
    compare_captions,
    other_questions,
    other_scenes,
)
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import Row
from lorax_vlm.training.probe import STALLED, ProbeReport, probe_image_path


def side_effects(engine: BaseEngine, stored: StoredAdapter) -> SideEffects | None:
    """What an adapter does to skills that it was not trained for, beside the base.

    Only on the miniatures, whose skills are known; None for any other base.
    """
    entry, manifest = engine.entry, stored.manifest
    if not entry.miniature:
        return None
    who = (None, stored.reference)
    examples = other_questions(kinds_taught(manifest.skill))
    skills: list[OtherSkill] = []
    if examples:
        asks = (ask_of(entry, own, question=True) for own in (None, manifest))
        answers = [
            engine.say([Row(e.open_image(), name, how.prompt(e.question), how.settings) for e in examples])
            for name, how in zip(who, asks, strict=True)
        ]
        skills += compare_answers(examples, *answers)
    if entry.captions and answers_questions(manifest):
        scenes, how = other_scenes(), ask_of(entry, None, question=False)
        captions = [engine.say([Row(s.image, name, how.prompt(), how.settings) for s in scenes]) for name in who]
        skills.append(compare_captions(scenes, *captions))
    return SideEffects(tuple(skills))


def side_effects_on(bases: Bases, base: str, stored: StoredAdapter) -> SideEffects | None:
    """``side_effects`` of an adapter on a base; one that is no miniature is not loaded for it."""
    if not bases.entry(base).miniature:
        return None
    with bases.use(base) as engine:
        return side_effects(engine, stored)


def image_limit(engine: BaseEngine, stored: StoredAdapter, splits: DataSplits) -> ProbeReport | None:
    """What the frozen image path hands on of what an adapter was to learn, where its training stalled.

    Returns:
        None where it did not stall, where the adapter changes the image path itself, or where it cannot be told.
    """
    manifest = stored.manifest
    loss = manifest.training.get("last_training_loss")
    if loss is None or loss <= STALLED or IMAGE_PATH_COMPONENTS & manifest.sites.keys():
        return None
    return probe_image_path(engine.base, splits.train)
