"""What a training batch really teaches: which tokens carry loss, and whether the image matters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.models.families.base import Batch, Family
from lorax_vlm.models.loading import LoadedModel


@dataclass(frozen=True)
class InspectedRow:
    """One row: its tokens in order, each with whether it carries loss."""

    name: str
    tokens: tuple[tuple[str, bool], ...]
    ends_with_eos: bool
    """Whether the last token that carries loss is the model's end token; else it would never learn to stop."""


@dataclass(frozen=True)
class BatchInspection:
    """A decoded training batch and three losses of the plain base on it."""

    rows: tuple[InspectedRow, ...]
    loss: float
    shuffled_loss: float
    """The same texts, each with another row's image."""
    blank_loss: float
    """The same texts, every image grey."""

    @property
    def image_matters(self) -> bool:
        """Whether the loss depends on which image belongs to which text."""
        return self.loss != self.shuffled_loss


@torch.no_grad()
def inspect_batch(base: LoadedModel, examples: Sequence[Example]) -> BatchInspection:
    """Build one training batch exactly as training does, and look into it.

    Args:
        base: Base without adapters in effect.
        examples: At least two, with different images.

    Raises:
        LoraxError: There are fewer than two examples, or one cannot be read or trained on.
    """
    if len(examples) < 2:
        raise LoraxError(f"At least 2 examples are needed to shuffle images, got {len(examples)}.")
    family = base.family
    images = [example.open_image() for example in examples]
    batch = _batch(family, examples, images)
    rows = [
        InspectedRow(example.name, tuple(family.explain_row(batch, index)), family.ends_with_eos(batch, index))
        for index, example in enumerate(examples)
    ]
    grey = [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
    return BatchInspection(
        rows=tuple(rows),
        loss=_loss(base, batch),
        shuffled_loss=_loss(base, _batch(family, examples, [*images[1:], images[0]])),
        blank_loss=_loss(base, _batch(family, examples, grey)),
    )


def _batch(family: Family, examples: Sequence[Example], images: Sequence[Image.Image]) -> Batch:
    return family.training_batch(
        family.pixel_values(images),
        [example.prompt for example in examples],
        [example.target for example in examples],
        answers=[example.answers for example in examples],
        names=[example.name for example in examples],
    )


def _loss(base: LoadedModel, batch: Batch) -> float:
    inputs = {key: value.to(base.device) for key, value in batch.items()}
    labels = inputs.pop("labels")
    return float(base.family.loss(base.model(**inputs).logits, labels))
