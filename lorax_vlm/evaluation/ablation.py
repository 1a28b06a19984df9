"""Does the image matter? The same questions again, about other images and about grey ones."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.evaluation.intervals import paired_difference
from lorax_vlm.evaluation.results import AnswerRecord, ImageEffect
from lorax_vlm.types import ImageVerdict, Interval

Again = Callable[[Sequence[int], Sequence[Example], Sequence[int]], Sequence[AnswerRecord]]
"""Asks the questions of some rows about the images of other examples, whose numbers come last."""

_GREY = (127, 127, 127)
MOST_LOST = 0.1
"""An image is only called ignored when no more of the accuracy than this can come from it."""


def ablate(
    again: Again,
    examples: Sequence[Example],
    records: Sequence[AnswerRecord],
    metric: str,
    seed: int,
) -> dict[str, Any]:
    """Ask again without each question's own image.

    Args:
        again: As for the answers in ``records``.
        examples: All questions.
        records: Their answers, with the images' numbers. A question that could not be asked is not asked again.
        metric: Only questions that are judged by it are asked again.
        seed: Of the draw of other images.

    Returns:
        The fields ``blank``, ``shuffled`` and ``image_effect`` of a report; none where nothing could be asked.
    """
    rows = [row for row, record in enumerate(records) if record.metric == metric and not record.error]
    if not rows:
        return {}
    own = [records[row] for row in rows]
    pictured = [Example(partial(_grey_like, examples[row]), "", examples[row].name) for row in rows]
    grey = again(rows, pictured, [record.image for record in own])
    others = draw_others([record.image for record in own], seed)
    shown = {row: rows[other] for row, other in zip(rows, others, strict=True) if other is not None}
    over_another = share = None
    if shown:
        moved = sorted(shown, key=lambda row: shown[row])  # in the order of the images: each is opened once
        another = again(moved, [examples[shown[row]] for row in moved], [records[shown[row]].image for row in moved])
        over_another, share = _lost([records[row] for row in moved], another), _mean(another)
    over_blank = _lost(own, grey)
    verdict, reason = judge(_mean(own), over_another, over_blank)
    effect = ImageEffect(verdict, reason, over_another, over_blank, len(rows) - len(shown), seed)
    return {"blank": _mean(grey), "shuffled": share, "image_effect": effect}


def draw_others(images: Sequence[int], seed: int) -> list[int | None]:
    """For each row a row with another image, drawn at random from all other images; None where there is none.

    Args:
        images: Their numbers, equal for equal images.
        seed: Same seed, same draw.
    """
    first: dict[int, int] = {}
    for row, image in enumerate(images):
        first.setdefault(image, row)
    rows, places = list(first.values()), {image: place for place, image in enumerate(first)}
    if len(rows) < 2:
        return [None] * len(images)
    rng = random.Random(seed)
    # A step of 1 to all but one around the circle of images never ends at the own one.
    return [rows[(places[image] + rng.randrange(1, len(rows))) % len(rows)] for image in images]


def judge(accuracy: float, over_another: Interval | None, over_blank: Interval) -> tuple[ImageVerdict, str]:
    """Whether answers depend on the image, and why that can be said, or cannot.

    Args:
        accuracy: With the own images.
        over_another: Own minus another's, paired; None where no question could be given another image.
        over_blank: Own minus grey, paired.
    """
    if over_another is None:
        return "cannot tell", "all images are equal: no question could be given another one"
    points = over_another.points()
    if over_another.above_zero:
        return "depends", f"{points} over another image"
    doubts = {
        over_another.caution: over_another.few,
        "no answer is right, so none can be lost": not accuracy,
        f"a grey image costs accuracy, another one does not: {points}": over_blank.above_zero,
        f"too wide an interval: {points} over another image": over_another.high > MOST_LOST,
    }
    doubt = next((reason for reason, held in doubts.items() if held), None)
    if doubt is not None:
        return "cannot tell", doubt
    return "ignored", f"as accurate with another image: {points}. It answers from the question"


def _lost(own: Sequence[AnswerRecord], without: Sequence[AnswerRecord]) -> Interval:
    return paired_difference([r.score for r in without], [r.score for r in own], [r.unit for r in own])


def _mean(records: Sequence[AnswerRecord]) -> float:
    return sum(record.score for record in records) / len(records)


def _grey_like(example: Example) -> Image.Image:
    """As large as the example's image: some models see more of a larger one."""
    return Image.new("RGB", example.open_image().size, _GREY)
