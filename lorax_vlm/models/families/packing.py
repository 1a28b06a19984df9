"""Training rows of a decoder-only language model one after the other in one row, instead of padded to the longest.

Everything but attention works position by position and needs no padding. Attention lays the rows out side by side again;
as padding would come last and the language model looks back only, no mask is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lorax_vlm.models.families.base import IGNORED_LABEL

_NAME = "lorax-packed"


def pack_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """A right-padded training batch with encoded images as one row ``(1, S)`` of ``S`` positions without padding.

    Logits are computed for the targets only. Labels ``(1, K)`` belong to them: of each row those from the position
    before its first target on, which is ignored; so what follows one row's end is no target.

    Args:
        batch: Of ``Family.training_batch`` with ``batch_with_features``.

    Returns:
        What the model takes, and ``labels``; ``row_positions`` and ``row_labels``, how many of each a row has.
    """
    mask, labels = batch["attention_mask"].bool(), batch["labels"]
    kept = (labels != IGNORED_LABEL).roll(-1, dims=1) | (labels != IGNORED_LABEL)
    width = mask.shape[1]
    return {
        "pixel_values": None,
        **{key: value for key, value in batch.items() if key in ("qformer_input_ids", "mm_encoder_outputs")},
        "input_ids": batch["input_ids"][mask][None],
        "position_ids": torch.arange(width, device=mask.device).expand_as(mask)[mask][None],
        "packed_places": mask.flatten().nonzero()[:, 0],
        "packed_shape": (len(mask), width),
        "logits_to_keep": kept[mask].nonzero()[:, 0],
        "labels": labels[kept][None],
        "row_positions": mask.sum(dim=1).tolist(),
        "row_labels": kept.sum(dim=1).tolist(),
    }


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Run a block in which a model's decoder-only language model takes packed batches, and no others."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _no_mask)
    language_model = model.language_model
    usual = language_model.config._attn_implementation
    language_model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        language_model.set_attn_implementation(usual)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_places: Tensor,
    packed_shape: tuple[int, int],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row; ``query`` ``(1, H, S, D)`` to ``(1, S, H, D)``.

    ``packed_places`` says where each of the ``S`` positions is in ``packed_shape``, ``B`` rows of ``T``.
    """

    def lay_out(packed: Tensor) -> Tensor:
        by_position = packed[0].transpose(0, 1)
        padded = by_position.new_zeros(rows * width, *by_position.shape[1:])
        return padded.index_copy(0, packed_places, by_position).unflatten(0, (rows, width)).transpose(1, 2)

    rows, width = packed_shape
    groups = getattr(module, "num_key_value_groups", 1)
    attended = nn.functional.scaled_dot_product_attention(
        lay_out(query),
        lay_out(key),
        lay_out(value),
        is_causal=True,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=groups > 1,
    )
    return attended.transpose(1, 2).flatten(0, 1)[packed_places][None], None
