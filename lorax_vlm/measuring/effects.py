"""What an adapter does beside what it was trained for, and what its base's frozen image path keeps it from learning."""

from collections.abc import Sequence

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions, ask_of
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.skills import kinds_taught
from lorax_vlm.evaluation.side_effects import SideEffects, measure_side_effects
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import Row, say_rows
from lorax_vlm.training.probe import STALLED, ProbeReport, probe_image_path

_ASKED_TOGETHER = 64


def side_effects(engine: BaseEngine, stored: StoredAdapter) -> SideEffects | None:
    """What an adapter does to skills that it was not trained for, beside the base.

    Only on the miniatures, whose skills are known; None for any other base.
    """
    entry, manifest = engine.entry, stored.manifest
    if not entry.miniature:
        return None
    captions = not answers_questions(manifest)

    def say(rows: Sequence[Row]) -> list[str]:
        return [text.text for text in say_rows(engine.generate_batch, rows, batch_size=_ASKED_TOGETHER)]

    def ask(adapter: str | None, examples: Sequence[Example]) -> list[str]:
        how = ask_of(entry, manifest if adapter is not None else None, question=True)
        return say([Row(e.open_image(), adapter, how.prompt(e.question), how.settings) for e in examples])

    def write(adapter: str | None, scenes: Sequence[Scene]) -> list[str]:
        how = ask_of(entry, None, question=False)
        return say([Row(s.image, adapter, how.prompt(), how.settings) for s in scenes])

    kinds = kinds_taught(manifest.skill)
    return measure_side_effects(stored.reference, kinds, ask, write if entry.captions and not captions else None)


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
