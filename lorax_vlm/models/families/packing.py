"""Training rows one after the other in one row, instead of padded to the longest.

Everything but attention works position by position and needs no padding. Attention lays the rows out side by side
again. An encoder-decoder model has two such rows, *streams*: what its encoder reads and what its decoder writes.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS, component_of
from lorax_vlm.models.families.base import IGNORED_LABEL

_NAME = "lorax-packed"
_OF_PEFT = "base_model.model."
"""Before the names of modules in a model of PEFT's."""
ENCODER, DECODER, IMAGE = "encoder", "decoder", "image"
Layout = tuple[Tensor, int, int]
"""Where each of a stream's ``S`` positions is among ``B * T`` padded ones, ``B``, and ``T``."""


def stream_of(site: str) -> str:
    """The stream whose positions pass a layer; a decoder-only language model has ``DECODER`` alone.

    >>> stream_of("language_model.decoder.block.0.layer.1.EncDecAttention.k")
    'encoder'
    >>> stream_of("vision_model.encoder.layers.0.mlp.fc1")
    'image'
    """
    if component_of(site.removeprefix(_OF_PEFT)) in IMAGE_PATH_COMPONENTS:
        return IMAGE
    if ".EncDecAttention.k" in site or ".EncDecAttention.v" in site:
        return ENCODER
    return ENCODER if ".encoder." in site else DECODER


def pack_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """A right-padded training batch with encoded images as one row of each stream, without padding.

    Logits are computed for the targets only. Of a decoder-only model's row they begin at the position before the first
    target, whose own label is ignored; so what follows one row's end is no target.

    Args:
        batch: Of ``Family.training_batch``, with images that were seen.

    Returns:
        What the model takes, and ``labels`` ``(1, K)``; ``row_positions``, by stream how many positions each row has,
        and ``row_labels``, how many labels.
    """
    mask, labels = batch["attention_mask"].bool(), batch["labels"]
    targets = labels != IGNORED_LABEL
    packed: dict[str, Any] = {"input_ids": batch["input_ids"][mask][None], "pixel_values": None, "use_cache": False}
    packed |= {key: value for key, value in batch.items() if key in ("qformer_input_ids", "mm_encoder_outputs")}
    if "decoder_input_ids" in batch:
        masks, kept = {ENCODER: mask, DECODER: targets}, targets
        packed["decoder_input_ids"] = batch["decoder_input_ids"][targets][None]
    else:
        masks, kept = {DECODER: mask}, targets.roll(-1, dims=1) | targets
        packed["position_ids"] = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[mask][None]
        packed["logits_to_keep"] = kept[mask].nonzero()[:, 0]
    return {
        **packed,
        "packed_layouts": {name: (m.flatten().nonzero()[:, 0], *m.shape) for name, m in masks.items()},
        "labels": labels[kept][None],
        "row_positions": {name: m.sum(dim=1).tolist() for name, m in masks.items()},
        "row_labels": kept.sum(dim=1).tolist(),
    }


def use_packed_attention(model: Any) -> None:
    """Let a model's language model take packed batches, and no others, from now on: for a copy that is trained."""
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _no_mask)
    model.language_model.set_attn_implementation(_NAME)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layouts: Mapping[str, Layout],
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each row; ``query`` ``(1, H, S, D)`` to ``(1, S, H, D)``.

    Padding comes last, so that who looks back only needs no mask for it.
    """
    written = packed_layouts[DECODER]
    of_query = written if module.is_causal or module.is_decoder else packed_layouts[ENCODER]
    of_key = written if module.is_causal else packed_layouts[ENCODER]
    mask = None if position_bias is None else _mask(position_bias, of_query, of_key, module.is_causal)
    # On a CPU the backward pass of the fused kernel takes two to three times as long in bfloat16.
    with sdpa_kernel(SDPBackend.MATH) if query.device.type == "cpu" else nullcontext():
        attended = nn.functional.scaled_dot_product_attention(
            _lay_out(query, of_query),
            _lay_out(key, of_key),
            _lay_out(value, of_key),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=getattr(module, "num_key_value_groups", 1) > 1,
        )
    return attended.transpose(1, 2).flatten(0, 1)[of_query[0]][None], None


def _lay_out(packed: Tensor, layout: Layout) -> Tensor:
    """``(1, H, S, D)`` to ``(B, H, T, D)``, filled with zeros."""
    places, rows, width = layout
    by_position = packed[0].transpose(0, 1)
    padded = by_position.new_zeros(rows * width, *by_position.shape[1:])
    return padded.index_copy(0, places, by_position).unflatten(0, (rows, width)).transpose(1, 2)


def _mask(position_bias: Tensor, of_query: Layout, of_key: Layout, causal: bool) -> Tensor:
    """T5's bias ``(1, H, S, S)``, which knows distances only, for rows side by side, and what may not be looked at."""
    (_, _, width), (places, rows, key_width) = of_query, of_key
    bias = position_bias[:, :, :width, :key_width]
    if causal:
        return bias + torch.full((width, width), -torch.inf, dtype=bias.dtype, device=bias.device).triu(1)
    if len(places) == rows * key_width:
        return bias
    padding = torch.full((rows * key_width,), -torch.inf, dtype=bias.dtype, device=bias.device)
    return bias + padding.index_fill(0, places, 0.0).view(rows, 1, 1, key_width)
