"""What a training batch really teaches: which tokens carry loss, and whether the image matters."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from PIL import Image
from torch import nn

from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.base import Batch, Family
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.copies import peft_copy
from lorax_vlm.training.random_state import preserved_random_state
from lorax_vlm.types import ImageVerdict

FEWEST_EXAMPLES = 2
"""To shuffle their images."""
LOOKED_AT = 100
"""Examples that are looked at for each row of the batch, until there are enough different ones."""
_NOISE = 1e-5  # relative: losses of equal logits differ by the order of a sum


@dataclass(frozen=True)
class InspectedRow:
    """One row: its tokens in order, each with whether it carries loss."""

    name: str
    tokens: tuple[tuple[str, bool], ...]
    ends_with_eos: bool
    """Whether the last token that carries loss is the model's end token; else it would never learn to stop."""


@dataclass(frozen=True)
class BatchInspection:
    """A decoded training batch and three losses of the plain base on it. A loss that is not finite is None."""

    rows: tuple[InspectedRow, ...]
    loss: float | None
    shuffled_loss: float | None
    """The same texts, each with another row's image."""
    blank_loss: float | None
    """The same texts, every image grey."""
    verdict: ImageVerdict
    """Whether the loss depends on which image belongs to which text."""
    reason: str
    """Why that can be said, or cannot, for people."""


def choose_rows(examples: Iterable[Example], count: int) -> list[Example]:
    """Examples for ``inspect_batch``: with different targets and different images, as far as there are such.

    Args:
        examples: Looked at in order, no more of them than needed.
        count: Of rows.

    Returns:
        The first that differ in both; where these are too few also some that repeat a target, at last an image.
    """
    chosen: list[Example] = []
    same_target: list[Example] = []
    same_image: list[Example] = []
    targets: set[str] = set()
    images: set[Hashable] = set()
    for example in islice(examples, LOOKED_AT * count):
        new_target = example.target not in targets
        if not new_target and len(same_target) >= count:
            continue  # its image need not be read
        image = example.image_key
        rows = same_image if image in images else chosen if new_target else same_target
        rows.append(example)
        images.add(image)
        if rows is not same_image:
            targets.add(example.target)
        if len(chosen) == count:
            break
    return [*chosen, *same_target, *same_image][:count]


@torch.no_grad()
def inspect_batch(base: LoadedModel, examples: Sequence[Example], labels: Sequence[str] = ()) -> BatchInspection:
    """Build one training batch exactly as training does, and look into it.

    Args:
        base: Base without adapters in effect.
        examples: At least two; of ``choose_rows``, so that the losses can tell something.
        labels: Of a family that chooses: the answers of the head that training would give the adapter.

    Raises:
        UsageError: There are fewer than two examples.
        LoraxError: One cannot be read or trained on.
    """
    if len(examples) < FEWEST_EXAMPLES:
        raise UsageError(f"At least {FEWEST_EXAMPLES} examples are needed to shuffle images, got {len(examples)}.")
    family, model = base.family, base.model
    if labels:
        with preserved_random_state():
            family, model = family.with_labels(labels), peft_copy(base, get_recipe("light"), 0, labels)
    images = [example.open_image() for example in examples]
    batch = _batch(family, examples, images)
    rows = [
        InspectedRow(example.name, tuple(family.explain_row(batch, index)), family.ends_with_eos(batch, index))
        for index, example in enumerate(examples)
    ]
    grey = [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
    loss = _loss(base, family, model, batch)
    shuffled = _loss(base, family, model, _batch(family, examples, [*images[1:], images[0]]))
    blank = _loss(base, family, model, _batch(family, examples, grey))
    verdict, reason = judge_losses(
        loss, shuffled, blank, targets=len({e.target for e in examples}), images=len({e.image_key for e in examples})
    )
    return BatchInspection(tuple(rows), _finite(loss), _finite(shuffled), _finite(blank), verdict, reason)


def judge_losses(loss: float, shuffled: float, blank: float, *, targets: int, images: int) -> tuple[ImageVerdict, str]:
    """Whether the image matters, and why that can be said, or cannot.

    Args:
        loss: With each text's own image.
        shuffled: With another text's.
        blank: With grey ones.
        targets: How many different ones there are.
        images: How many different ones there are.
    """
    if not all(map(math.isfinite, (loss, shuffled, blank))):
        return "cannot tell", "a loss is not finite"
    if not _same(loss, shuffled):
        return "depends", "the loss changes when the images are exchanged"
    looked_at = "grey images change the loss" if not _same(loss, blank) else "grey images do not change the loss"
    if images < 2:
        return "cannot tell", f"all images are equal, so exchanging them changes nothing; {looked_at}"
    if targets < 2:
        return "cannot tell", f"all targets are equal, so exchanging the images cannot change their loss; {looked_at}"
    if not _same(loss, blank):
        return "cannot tell", f"exchanging the images changes nothing, but {looked_at}"
    return "ignored", "neither other images nor grey ones change the loss"


def _same(loss: float, other: float) -> bool:
    return math.isclose(loss, other, rel_tol=_NOISE, abs_tol=_NOISE / 10)


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _batch(family: Family, examples: Sequence[Example], images: Sequence[Image.Image]) -> Batch:
    return family.training_batch(
        family.prepare(images),
        [example.prompt for example in examples],
        [example.target for example in examples],
        answers=[example.answers for example in examples],
        names=[example.name for example in examples],
    )


def _loss(base: LoadedModel, family: Family, model: nn.Module, batch: Batch) -> float:
    inputs = {key: value.to(base.device) for key, value in batch.items()}
    labels = inputs.pop("labels")
    return float(family.loss(model(**inputs).logits, labels))
