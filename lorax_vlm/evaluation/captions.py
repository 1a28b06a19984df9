"""Measuring captions: against scenes whose truth is known, and against reference captions. No torch."""

import importlib.util
import math
from collections.abc import Hashable, Sequence

from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene, score_caption
from lorax_vlm.data.world.captions import STYLES
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.intervals import mean_interval, numbers_of, paired_difference
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.evaluation.text_metrics import TOKENIZER, caption_metrics, metric_problems
from lorax_vlm.foreign import quoted
from lorax_vlm.types import Interval, ModelText

_SHOWN_FAILURES = 8
FEWEST_FOR_CIDER = 10
"""Images: of fewer, what CIDEr takes for rare words is chance."""


def judge_scene_captions(
    captions: Sequence[ModelText],
    scenes: Sequence[Scene],
    style: str,
    subject: Subject,
    time_s: float,
) -> CaptionReport:
    """Judge form and content of one caption per scene.

    Args:
        captions: One per scene.
        scenes: What they are about.
        style: What they should be in.
        subject: Wrote them.
        time_s: How long captioning took.

    Raises:
        UsageError: The style is unknown, or there are no scenes, or not one caption for each.
    """
    if not scenes or len(captions) != len(scenes):
        raise UsageError(f"At least one scene is needed, and a caption of each: {len(scenes)}, {len(captions)}.")
    scores = [score_caption(scene, style, text) for scene, text in zip(scenes, captions, strict=True)]
    failures = [
        {"scene": scene.seed, "caption": str(text), "reference": scene.caption(style), **score._asdict()}
        for scene, text, score in zip(scenes, captions, scores, strict=True)
        if not (score.in_style and score.true)
    ]
    both = tuple(float(score.in_style and score.true) for score in scores)
    intervals = {
        "in_style": mean_interval([float(score.in_style) for score in scores]),
        "true": mean_interval([float(score.true) for score in scores]),
        "in_style_and_true": mean_interval(both),
    }
    return CaptionReport(
        adapter=subject.adapter,
        base=subject.base,
        style=style,
        count=len(scenes),
        in_style=intervals["in_style"].value,
        true=intervals["true"].value,
        in_style_and_true=intervals["in_style_and_true"].value,
        finished=sum(text.finish != "length" for text in captions) / len(scenes),
        time_s=time_s,
        protocol=subject.protocol(f"scenes {scenes[0].seed} to {scenes[-1].seed}"),
        failures=tuple(failures[:_SHOWN_FAILURES]),
        intervals=intervals,
        scores=both,
    )


def grouped_by_image(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of each image, in the order of the first ones.

    Raises:
        ImageError: An image cannot be read.
    """
    groups: dict[Hashable, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.image_key, []).append(example)
    return list(groups.values())


def judge_reference_captions(
    captions: Sequence[ModelText],
    loss: float,
    images: Sequence[Sequence[Example]],
    subject: Subject,
    time_s: float,
    *,
    source: str,
) -> ReferenceReport:
    """Compare one caption per image, word for word, with each reference of the image.

    Args:
        captions: One per image.
        loss: Per target token over all references.
        images: Of ``grouped_by_image``: examples whose targets are the references.
        subject: Wrote the captions.
        time_s: How long captioning took.
        source: What the examples are.

    Raises:
        UsageError: There are no images, or not one caption for each.
    """
    if not images or len(captions) != len(images):
        raise UsageError(
            f"At least one example is needed, and a caption of each image: {len(images)}, {len(captions)}."
        )
    references = [[example.target for example in same] for same in images]
    scores = tuple(
        float(bool(text.strip()) and _plain(text) in {_plain(target) for target in targets})
        for text, targets in zip(captions, references, strict=True)
    )
    failures = [
        {"example": same[0].name, "caption": str(text), "reference": same[0].target, "references": len(same)}
        for text, same, score in zip(captions, images, scores, strict=True)
        if not score
    ]
    units = tuple(numbers_of(same[0].unit for same in images))
    interval = mean_interval(scores, units)
    figures, reasons = _text_metrics(captions, references)
    counts = {"images": len(images), "references": sum(map(len, images))}
    return ReferenceReport(
        adapter=subject.adapter,
        base=subject.base,
        source=source,
        count=len(images),
        exact_match=interval.value,
        loss=loss if math.isfinite(loss) else None,
        time_s=time_s,
        text_metrics=figures,
        reasons=reasons,
        protocol=subject.protocol(source) | {"tokenizer": TOKENIZER} | counts,
        failures=tuple(failures[:_SHOWN_FAILURES]),
        interval=interval,
        scores=scores,
        units=units,
    )


def compare_captions(first: CaptionReport | ReferenceReport, second: CaptionReport | ReferenceReport) -> Interval:
    """How much better the second report is, with a paired interval: of captions in style and true, or of exact ones.

    Raises:
        UsageError: They are not of the same images, judged in the same way.
    """
    if isinstance(first, CaptionReport) and isinstance(second, CaptionReport):
        same = (first.style, first.protocol.get("data")) == (second.style, second.protocol.get("data"))
    else:
        same = type(first) is type(second) and first.protocol.get("data") == second.protocol.get("data")
    if not same or len(first.scores) != len(second.scores):
        raise UsageError("Only reports on the same images, judged in the same way, can be compared.")
    units = first.units if isinstance(first, ReferenceReport) else None
    return paired_difference(first.scores, second.scores, units)


def against_base(reports: Sequence[CaptionReport | ReferenceReport]) -> dict[str, Interval]:
    """How much better each adapter is than the base on the same images, judged in the same way; empty without it."""
    bases = {getattr(report, "style", None): report for report in reports if report.adapter is None}
    return {
        report.adapter: compare_captions(bases[getattr(report, "style", None)], report)
        for report in reports
        if report.adapter is not None and getattr(report, "style", None) in bases
    }


def style_on_scenes(adapter: str, style: str) -> str:
    """The style of an adapter, by which its captions of drawn scenes are judged.

    Raises:
        UsageError: It has a style of its own, and nothing says whether a caption is in it.
    """
    if style in STYLES:
        return style
    own = f"a style of its own, {quoted(style)}" if style else "a style of its own"
    raise UsageError(
        f"Adapter {adapter!r} has {own}: drawn scenes have no captions in it. Compare with captions that you give "
        f"(--data FOLDER), or judge by a known style (--style, one of {', '.join(STYLES)})."
    )


def _text_metrics(
    captions: Sequence[ModelText], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Figures by metric, and why one is None."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return {}, {}
    problems = metric_problems(references)
    if len(captions) < FEWEST_FOR_CIDER:
        chance = f"of {len(captions)} images it is chance which words are rare; {FEWEST_FOR_CIDER} are needed"
        problems = {"CIDEr": chance} | problems
    return caption_metrics(captions, references) | dict.fromkeys(problems), problems


def _plain(text: str) -> str:
    words = " ".join(text.lower().split())
    return words.rstrip(".! ") or words
