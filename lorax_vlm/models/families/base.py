"""What every model family answers. One file per architecture beside this one implements it.

A family turns (images, prompts, targets) into its architecture's tensors and generated ids back into text. It holds
no weights: the model is always passed in, so the same family serves the plain base and the base with adapters.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from lorax_vlm.types import Generated, GenerationSettings

Batch = dict[str, Tensor]
IGNORED_LABEL = -100


class Family(Protocol):
    """Shapes: ``B`` rows, ``T`` tokens, ``Q`` query tokens per image, ``D`` width of the language model."""

    name: str
    tokenizer: Any
    eos_id: int
    """The token that ends a target."""

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images to ``(B, 3, H, W)`` float32."""
        ...

    def training_batch(
        self, pixel_values: Tensor, prompts: Sequence[str], targets: Sequence[str], *, names: Sequence[str] = ()
    ) -> Batch:
        """Tensors of one training step, labels included.

        Labels carry loss on the target and its end token only. ``names`` identify the rows in errors.

        Raises:
            ExampleError: A target is empty, or a row does not fit the language model's positions.
        """
        ...

    def encode_images(self, model: Any, pixel_values: Tensor) -> Tensor:
        """The part of the forward pass that no text enters: ``(B, Q, D)``."""
        ...

    def generate(
        self, model: Any, features: Tensor, prompts: Sequence[str], settings: GenerationSettings
    ) -> list[Generated]:
        """Continue each prompt given its image's features; row ``b`` of ``features`` belongs to ``prompts[b]``.

        Raises:
            ValueError: The numbers of rows differ.
        """
        ...


def target_loss(logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
    """Next-token cross-entropy over the labelled positions of a decoder-only model.

    Args:
        logits: ``(B, T, V)``; position ``t`` predicts the token at ``t + 1``.
        labels: ``(B, T)``, ``IGNORED_LABEL`` where no loss is due.
        normalizer: Number of labelled tokens to divide the sum by. Under gradient accumulation it counts the whole
            step, so that one step of four rows equals four accumulated rows. None: those of this batch.

    Returns:
        A scalar in float32.
    """
    shifted = labels[:, 1:].to(logits.device)
    if normalizer is None:
        normalizer = int((shifted != IGNORED_LABEL).sum())
    total = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), shifted.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / normalizer
