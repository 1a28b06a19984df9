"""Measuring captions: against scenes whose truth is known, and against reference captions."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene, score_caption
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.protocol import describe_protocol
from lorax_vlm.evaluation.text_metrics import TOKENIZER, caption_metrics
from lorax_vlm.types import Caption, CaptionReport, GenerationSettings, ReferenceReport

_SHOWN_FAILURES = 8


def judge_scene_captions(
    captions: Sequence[Caption],
    scenes: Sequence[Scene],
    style: str,
    *,
    base: str,
    adapter: str | None,
    settings: GenerationSettings,
    time_s: float,
) -> CaptionReport:
    """Judge form and content of one caption per scene.

    Raises:
        UsageError: The style is unknown, or there are no scenes, or not one caption for each.
    """
    if not scenes:
        raise UsageError("At least one scene is needed.")
    scores = [score_caption(scene, style, text) for scene, text in zip(scenes, captions, strict=True)]
    failures = [
        {"scene": scene.seed, "caption": str(text), "reference": scene.caption(style), **score._asdict()}
        for scene, text, score in zip(scenes, captions, scores, strict=True)
        if not (score.in_style and score.true)
    ]
    count = len(scenes)
    return CaptionReport(
        adapter=adapter,
        base=base,
        style=style,
        count=count,
        in_style=sum(score.in_style for score in scores) / count,
        true=sum(score.true for score in scores) / count,
        in_style_and_true=sum(score.in_style and score.true for score in scores) / count,
        finished=sum(text.finish != "length" for text in captions) / count,
        time_s=time_s,
        protocol=describe_protocol(f"scenes {scenes[0].seed} to {scenes[-1].seed}", settings),
        failures=tuple(failures[:_SHOWN_FAILURES]),
    )


def judge_reference_captions(
    captions: Sequence[Caption],
    loss: float,
    examples: Sequence[Example],
    *,
    source: str,
    base: str,
    adapter: str | None,
    settings: GenerationSettings,
    time_s: float,
) -> ReferenceReport:
    """Compare one caption per example with its reference, word for word.

    Raises:
        UsageError: There are no examples, or not one caption for each.
    """
    if not examples:
        raise UsageError("At least one example is needed.")
    equal = [_plain(text) == _plain(e.target) for text, e in zip(captions, examples, strict=True)]
    failures = [
        {"example": e.name, "caption": str(text), "reference": e.target}
        for text, e, same in zip(captions, examples, equal, strict=True)
        if not same
    ]
    return ReferenceReport(
        adapter=adapter,
        base=base,
        source=source,
        count=len(examples),
        exact_match=sum(equal) / len(examples),
        loss=loss,
        time_s=time_s,
        text_metrics=_text_metrics(captions, examples),
        protocol=describe_protocol(source, settings) | {"tokenizer": TOKENIZER},
        failures=tuple(failures[:_SHOWN_FAILURES]),
    )


def _text_metrics(captions: Sequence[Caption], examples: Sequence[Example]) -> dict[str, float]:
    """One caption per image against all references of that image."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return {}
    references: dict[Any, list[str]] = {}
    given: dict[Any, str] = {}
    for caption, example in zip(captions, examples, strict=True):
        key = str(example.image) if isinstance(example.image, str | Path) else example.name
        references.setdefault(key, []).append(example.target)
        given.setdefault(key, caption)
    return caption_metrics(list(given.values()), list(references.values()))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".! ")
