"""Measuring captions: on drawn scenes against the truth, on data against their references."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced

from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import caption_ask
from lorax_vlm.data.examples import Choice, DataSplits
from lorax_vlm.data.images import ImageSource
from lorax_vlm.data.scenes import Scene, iterate_scenes
from lorax_vlm.data.world.examples import drawn_example
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.captions import (
    grouped_by_image,
    judge_reference_captions,
    judge_scene_captions,
    style_on_scenes,
)
from lorax_vlm.evaluation.opening import readable, sources_in_turn
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.reference_loss import reference_loss
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.seen import Asked
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.requests import Request
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.types import ModelText


@dataclass(frozen=True)
class CaptionMeasurement:
    """What is wanted."""

    adapters: Mapping[str, StoredAdapter]
    """By what they are called in the reports."""
    style: str | None = None
    """To judge scenes by. None: each adapter's own, ``plain`` for the base."""
    data: DataSplits | None = None
    """With reference captions. None: scenes."""
    split: Choice = "all"
    """Which of the data's examples, as training divides them."""
    count: int = 300
    """Of scenes."""
    with_base: bool = True
    include_seen: bool = False
    """Caption images that an adapter was trained on, too."""


@dataclass(frozen=True)
class CaptionPlan:
    """What is measured: all that can be found out before a base is loaded."""

    wanted: CaptionMeasurement
    unseen: Asked
    """Drawn scenes, or examples of the data."""
    scenes: Sequence[Scene] = ()
    styles: Mapping[str, str] = field(default_factory=dict)
    """By name of adapter: what its captions of scenes are judged by."""


def plan_captions(entry: CatalogEntry, wanted: CaptionMeasurement) -> CaptionPlan:
    """What is measured on a base.

    Raises:
        UsageError: There is neither data nor a miniature world for this base, an adapter has a style of its own and
            none is named, or all images were trained on.
        DataError: The data are questions.
        PromptError: An adapter answers questions.
    """
    adapters, seen = wanted.adapters, wanted.include_seen
    for stored in adapters.values():
        caption_ask(entry, stored.manifest)  # one that answers questions cannot be asked for a caption
    if wanted.data is not None:
        examples = list(wanted.data.require_kind("captions").select(wanted.split))
        return CaptionPlan(wanted, unseen_examples(adapters, examples, include_seen=seen))
    if not entry.miniature:
        raise UsageError(f"{entry.name} has no built-in test scenes. Pass data=FOLDER with a metadata.jsonl.")
    styles = {name: wanted.style or style_on_scenes(name, own.manifest.skill_name) for name, own in adapters.items()}
    scenes = list(iterate_scenes("test", wanted.count))  # drawn once for all
    drawn = unseen_examples(adapters, [drawn_example(scene.seed) for scene in scenes], include_seen=seen)
    left = {example.name for example in drawn.examples}
    return CaptionPlan(wanted, drawn, [s for s in scenes if drawn_example(s.seed).name in left], styles)


def measure_captions(engine: BaseEngine, plan: CaptionPlan) -> list[CaptionReport | ReferenceReport]:
    """Measure several adapters and, beside them, the base judged by each of their styles, on the same images."""
    wanted, data = plan.wanted, plan.wanted.data
    if data is not None:
        names = [*([None] if wanted.with_base else []), *wanted.adapters]
        return [_compare(engine, name, wanted.adapters.get(name or ""), plan.unseen, data.source) for name in names]
    reports = [
        replaced(report, seen=plan.unseen.of(name))
        for name, stored in wanted.adapters.items()
        for report in _judge(engine, name, stored, [plan.styles[name]], plan.scenes)
    ]
    judged = list(dict.fromkeys(["plain", *plan.styles.values()] if plan.styles else [wanted.style or "plain"]))
    return [*(_judge(engine, None, None, judged, plan.scenes) if wanted.with_base else []), *reports]


def _judge(
    engine: BaseEngine, name: str | None, stored: StoredAdapter | None, styles: Sequence[str], scenes: Sequence[Scene]
) -> list[CaptionReport]:
    start = time.monotonic()
    captions = _caption(engine, [scene.image for scene in scenes], stored)
    subject, seconds = _subject(engine, name, stored), time.monotonic() - start
    return [judge_scene_captions(captions, scenes, style, subject, seconds) for style in styles]


def _compare(
    engine: BaseEngine, name: str | None, stored: StoredAdapter | None, asked: Asked, source: str
) -> ReferenceReport:
    images, start = grouped_by_image(asked.examples), time.monotonic()
    captions: list[ModelText] = []
    firsts = [same[0] for same in images]
    for chunk in sources_in_turn(firsts, range(len(firsts))):
        captions += _caption(engine, [readable(opened) for _, opened in chunk], stored)
    seconds = time.monotonic() - start
    prompt = caption_ask(engine.entry, stored.manifest if stored is not None else None).prompt()
    references = [example for same in images for example in same]
    reference = stored.reference if stored is not None else None
    loss = reference_loss(engine.base, lambda: engine.using(reference), prompt, references, engine.batch_size)
    report = judge_reference_captions(captions, loss, images, _subject(engine, name, stored), seconds, source=source)
    return replaced(report, seen=asked.of(name))


def _caption(engine: BaseEngine, images: Sequence[ImageSource], stored: StoredAdapter | None) -> list[ModelText]:
    reference = stored.reference if stored is not None else None
    return [result.text for result in engine.generate([Request.about(image, None, reference) for image in images])]


def _subject(engine: BaseEngine, name: str | None, stored: StoredAdapter | None) -> Subject:
    settings = caption_ask(engine.entry, stored.manifest if stored is not None else None).settings
    return Subject(engine.entry.name, name, settings)
