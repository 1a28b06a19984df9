"""PEFT's LoRA layer for batches in which each block of rows trains an adapter of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from lorax_vlm.models.families.packing import IMAGE, stream_of
from lorax_vlm.models.families.pictures import deal_positions
from lorax_vlm.models.spec import HEAD


@dataclass(frozen=True)
class RowBlocks:
    """Which rows of a batch belong to which adapter; each adapter's are next to each other."""

    slots: Sequence[str]
    """PEFT's names of the adapters, in the order of their rows."""
    rows: Sequence[int]
    """Number of rows of each."""
    positions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Of a packed batch, by stream the number of positions of each; see ``models/families/packing.py``."""
    labels: Sequence[int] = ()
    """Of a packed batch, the number of labels of each."""
    images: Sequence[int] = ()
    """How much of the image path's positions each adapter's images take; see ``Family.lengths``. Empty: as rows do."""

    def split_positions(self, flat: Tensor, stream: str) -> tuple[Tensor, ...]:
        """Activations ``(P, D)`` of a stream's positions by adapter; rows that are not packed have equally many.

        Raises:
            ValueError: They cannot be dealt out.
        """
        if stream == IMAGE and self.images:
            return flat.split(deal_positions(len(flat), self.images))
        if self.positions:
            return flat.split(list(self.positions[stream]))
        per_row = len(flat) // sum(self.rows)
        return flat.split([per_row * count for count in self.rows])

    def split_labels(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Labels or logits by adapter: ``(B, ...)``, of a packed batch ``(1, K, ...)``."""
        return tensor.split(list(self.labels), dim=1) if self.labels else tensor.split(list(self.rows))


@dataclass
class CurrentBlocks:
    """The blocks of the batch at hand. One object, shared by all layers of a model.

    It is an attribute and not a variable of the call, because gradient checkpointing runs layers again in the backward
    pass.
    """

    blocks: RowBlocks = RowBlocks((), ())


class JointLora(LoraLinear):
    """A linear layer (``nn.Linear`` or a quantised one) with several trainable adapters, each for its own rows."""

    current: CurrentBlocks
    stream: str

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., D_in)`` to ``(..., D_out)``; the leading dimensions hold whole rows, as in ``runtime/routed.py``."""
        output: Tensor = self.base_layer(x, *args, **kwargs)
        blocks = self.current.blocks
        if not any(slot in self.lora_A for slot in blocks.slots):
            return output
        updates = []
        parts = blocks.split_positions(x.reshape(-1, x.shape[-1]), self.stream)
        for slot, part in zip(blocks.slots, parts, strict=True):
            if slot in self.lora_A:
                inner = self.lora_A[slot](self.lora_dropout[slot](part.to(self.lora_A[slot].weight.dtype)))
                updates.append(self.lora_B[slot](inner) * self.scaling[slot])
            else:
                updates.append(part.new_zeros(len(part), output.shape[-1]))
        return (output + torch.cat(updates).reshape(output.shape)).to(output.dtype)


def route_rows(model: nn.Module, current: CurrentBlocks) -> None:
    """Make every adapted layer of a PEFT model, and a head over answers, look at the current blocks."""
    for name, module in model.named_modules():
        if isinstance(module, JointLora):
            module.current, module.stream = current, stream_of(name)
        if isinstance(module, ModulesToSaveWrapper) and name.endswith(HEAD):
            module.forward = partial(_head_by_rows, module, current)


def _head_by_rows(head: Any, current: CurrentBlocks, x: Tensor) -> Tensor:
    """Pooled states ``(B, D)`` to logits ``(B, L)``; a row with fewer answers than others ends in zeros."""
    blocks = current.blocks
    logits = [
        (head.modules_to_save[slot] if slot in head.modules_to_save else head.original_module)(part)  # noqa: SIM401
        for slot, part in zip(blocks.slots, x.split(list(blocks.rows)), strict=True)
    ]
    width = max(part.shape[1] for part in logits)
    return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in logits])
