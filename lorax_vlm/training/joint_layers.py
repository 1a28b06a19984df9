"""PEFT's LoRA layer for batches in which each block of rows trains an adapter of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from lorax_vlm.adapters.files import HEAD


@dataclass
class RowBlocks:
    """Which rows of the batch at hand belong to which adapter. One object, shared by all layers of a model.

    It is an attribute and not a variable of the call, because gradient checkpointing runs layers again in the backward
    pass.
    """

    blocks: Sequence[tuple[str, int]] = ()
    """PEFT's name and number of rows, in the order of the rows."""

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(count for _, count in self.blocks)


class JointLora(LoraLinear):
    """A linear layer (``nn.Linear`` or a quantised one) with several trainable adapters, each for its own rows."""

    row_blocks: RowBlocks

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., D_in)`` to ``(..., D_out)``; the leading dimensions hold whole rows, as in ``runtime/routed.py``."""
        output: Tensor = self.base_layer(x, *args, **kwargs)
        blocks = self.row_blocks.blocks
        if not any(name in self.lora_A for name, _ in blocks):
            return output
        per_row = x.numel() // x.shape[-1] // self.row_blocks.rows
        by_row = x.reshape(self.row_blocks.rows, per_row, x.shape[-1])
        updates = []
        for (name, count), block in zip(blocks, by_row.split([count for _, count in blocks]), strict=True):
            if name in self.lora_A:
                inner = self.lora_A[name](self.lora_dropout[name](block.to(self.lora_A[name].weight.dtype)))
                updates.append(self.lora_B[name](inner) * self.scaling[name])
            else:
                updates.append(block.new_zeros(count, per_row, output.shape[-1]))
        return (output + torch.cat(updates).reshape(output.shape)).to(output.dtype)


def route_rows(model: nn.Module, row_blocks: RowBlocks) -> None:
    """Make every adapted layer of a PEFT model, and ViLT's head, look at ``row_blocks``."""
    for module in model.modules():
        if isinstance(module, JointLora):
            module.row_blocks = row_blocks
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and name.endswith(HEAD):
            module.forward = partial(_head_by_rows, module, row_blocks)


def _head_by_rows(head: Any, row_blocks: RowBlocks, x: Tensor) -> Tensor:
    """Pooled states ``(B, D)`` to logits ``(B, L)``; a row with fewer answers than others ends in zeros."""
    parts = x.split([count for _, count in row_blocks.blocks])
    logits = [
        (head.modules_to_save[name] if name in head.modules_to_save else head.original_module)(part)  # noqa: SIM401
        for (name, _), part in zip(row_blocks.blocks, parts, strict=True)
    ]
    width = max(part.shape[1] for part in logits)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in logits])
