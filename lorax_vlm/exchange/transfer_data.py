"""What a transfer may look at, and how right an answer is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.adapters.seen import read_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.answers import exact_match
from lorax_vlm.data.examples import Example
from lorax_vlm.data.readers.unlabelled import read_unlabelled
from lorax_vlm.data.sources import read_parts
from lorax_vlm.data.splitting import without_images_of
from lorax_vlm.errors import TransferRefused
from lorax_vlm.evaluation.intervals import numbers_of
from lorax_vlm.evaluation.results import SeenShare
from lorax_vlm.evaluation.seen import comparable, leave_out_seen
from lorax_vlm.exchange.report import Scored
from lorax_vlm.types import ENOUGH

Judge = Callable[[Example, str], float]
"""How right an answer is, 0 to 1."""

ENOUGH_UNLABELLED = 70
"""Images without labels from which on enough of the source's answers are left to measure with, and as many to learn."""


def judge_by_target(example: Example, text: str) -> float:
    """1 for the example's own target, after the VQA challenge's normalisation."""
    return float(exact_match(text, [example.target]))


@dataclass(frozen=True)
class TransferData:
    """What a transfer may look at."""

    unlabelled: Sequence[Example] = ()
    """Examples whose targets are not read; the source answers them."""
    development: Sequence[Example] = ()
    """Labelled examples to choose with. Without any, agreement with the source on held-out answers is measured."""
    off_task: Sequence[Example] = ()
    """Labelled examples of other tasks, to see what is lost."""
    judge: Judge = judge_by_target
    seen: SeenShare | None = None
    """What of the development images the adapter was trained on, before those were left out."""


def read_transfer_data(
    unlabelled: str | Path | Sequence[Example] | None,
    development: str | Path | Sequence[Example] | None,
    stored: StoredAdapter | None = None,
) -> TransferData | None:
    """Transfer data from folders or examples; None when none are given.

    Unlabelled images that are also among the development ones are left out, and of these the ones that the adapter was
    trained on.

    Args:
        unlabelled: Folder of images, see ``read_unlabelled``, or examples.
        development: What ``read_data`` recognises, or examples.
        stored: The adapter that is moved.

    Raises:
        DataError: They are malformed.
        UsageError: The adapter was trained on all development images.
    """
    if unlabelled is None and development is None:
        return None
    given = read_parts(development).select("all") if isinstance(development, str | Path) else development or ()
    chosen_by: Sequence[Example] = list(given)
    share = None
    if stored is not None and chosen_by:
        known = comparable(read_seen(stored.folder, stored.manifest), stored.manifest, chosen_by)
        asked = leave_out_seen(chosen_by, {stored.name: known}, way_out="Choose with others (development=).")
        chosen_by, share = asked.examples, asked.shares[0]
    images = read_unlabelled(unlabelled) if isinstance(unlabelled, str | Path) else unlabelled or ()
    return TransferData(unlabelled=without_images_of(images, chosen_by), development=chosen_by, seen=share)


def require_enough(name: str, target: str, data: TransferData) -> None:
    """Refuse before any work what could be measured on too few examples only, and would be refused after it.

    Raises:
        TransferRefused: There are too few.
    """
    labelled, unlabelled = (len({e.unit for e in part}) for part in (data.development, data.unlabelled))
    wanted = ENOUGH if labelled else ENOUGH_UNLABELLED
    if 0 < (labelled or unlabelled) < wanted:
        what = f"{labelled} labelled images" if labelled else f"{unlabelled} unlabelled images"
        raise TransferRefused(
            name, target, [f"{what} are too few to tell whether the result is worth keeping; it takes {wanted}"]
        )


def judge_all(judge: Judge, examples: Sequence[Example], texts: Sequence[str]) -> tuple[float, ...]:
    """A score per example."""
    return tuple(judge(example, text) for example, text in zip(examples, texts, strict=True))


def score_texts(name: str, judge: Judge, examples: Sequence[Example], texts: Sequence[str]) -> Scored:
    """Scores of what one thing said, with the image, or group of images, that each question is about."""
    units = tuple(numbers_of(example.unit for example in examples))
    return Scored(name, judge_all(judge, examples, texts), tuple(texts), units)
