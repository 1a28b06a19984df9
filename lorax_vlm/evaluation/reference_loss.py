"""How likely reference captions are to a model: the loss that training minimises, on images it was not trained on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from lorax_vlm.data.examples import Example
from lorax_vlm.evaluation.opening import distinct, pictures_in_turn
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.loading import LoadedModel


@torch.no_grad()
def reference_loss(
    base: LoadedModel,
    using: Callable[[], AbstractContextManager[Any]],
    prompt: str,
    examples: Sequence[Example],
    batch_size: int,
) -> float:
    """Cross-entropy per target token over all references, in nats.

    Args:
        base: Whose family makes the batches.
        using: Gives the model, with the adapter in effect.
        prompt: In front of every reference, the one that captions are asked for with.
        examples: Whose targets are the references. Neighbours of one image share what is made of it.
        batch_size: Most references per forward pass.

    Raises:
        ImageError: An image cannot be read.
    """
    total, tokens = 0.0, 0
    for rows, pictures in pictures_in_turn(examples, batch_size):
        chunk = [examples[row] for row in rows]
        different, places = distinct(pictures)
        prepared = base.family.prepare(different)
        batch = base.family.training_batch(
            [prepared[place] for place in places],
            [prompt] * len(chunk),
            [e.target for e in chunk],
            names=[e.name for e in chunk],
        )
        inputs = {key: value.to(base.device) for key, value in batch.items()}
        labels = inputs.pop("labels")
        with using() as model:
            total += float(base.family.loss(model(**inputs).logits, labels, 1))
        tokens += int((labels != IGNORED_LABEL).sum())
    return total / tokens
