"""What a training batch really teaches: which tokens carry loss, and whether the image matters."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch, target_loss
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
    pixels = base.family.pixel_values([example.open_image() for example in examples])
    batch = base.family.training_batch(
        pixels, [e.prompt for e in examples], [e.target for e in examples], names=[e.name for e in examples]
    )
    return BatchInspection(
        rows=tuple(_inspect_row(base, batch, index, example.name) for index, example in enumerate(examples)),
        loss=_loss(base, batch, pixels),
        shuffled_loss=_loss(base, batch, pixels.roll(1, dims=0)),
        blank_loss=_loss(base, batch, torch.zeros_like(pixels)),
    )


def _loss(base: LoadedModel, batch: Batch, pixels: torch.Tensor) -> float:
    inputs = {key: value.to(base.device) for key, value in {**batch, "pixel_values": pixels}.items()}
    labels = inputs.pop("labels")
    return float(target_loss(base.model(**inputs).logits, labels))


def _inspect_row(base: LoadedModel, batch: Batch, index: int, name: str) -> InspectedRow:
    tokenizer = base.family.tokenizer
    kept = batch["attention_mask"][index].bool()
    ids, labels = batch["input_ids"][index][kept].tolist(), batch["labels"][index][kept].tolist()
    tokens = tuple(
        (tokenizer.decode([token]), label != IGNORED_LABEL) for token, label in zip(ids, labels, strict=True)
    )
    carrying = [label for label in labels if label != IGNORED_LABEL]
    return InspectedRow(name, tokens, carrying[-1] == base.family.eos_id)
