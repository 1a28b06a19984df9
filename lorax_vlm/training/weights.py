"""The trained weights of an adapter: what it begins with, and which of its steps is chosen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lorax_vlm.adapters.factors import Update


def choose_step(history: Sequence[Mapping[str, Any]], first_loss: float) -> tuple[int, float]:
    """The validated step of the smallest loss, and that loss; step 0, the beginning, unless a later one is better."""
    losses = [(row["eval_loss"], row["step"]) for row in history if "eval_loss" in row and row["step"] > 0]
    loss, step = min(losses, default=(math.inf, 0))
    return (step, loss) if loss < first_loss else (0, first_loss)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in a model that is trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters the values of ``trained_weights`` back."""
    parameters = dict(model.named_parameters())
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)


@torch.no_grad()
def start_from(peft_model: PeftModel, updates: Mapping[str, Update], slot: str = "default") -> None:
    """Let an adapter begin with given updates instead of as the identity; what its rank has beyond theirs stays free.

    Raises:
        ValueError: An update has no site, or more ranks than the adapter.
    """
    base = peft_model.get_base_model()
    for site, update in updates.items():
        layer: Any = base.get_submodule(site)
        if not isinstance(layer, LoraLayer):
            raise ValueError(f"{site} is not adapted, so it cannot begin with an update.")
        a, b = layer.lora_A[slot].weight, layer.lora_B[slot].weight
        if update.rank > a.shape[0]:
            raise ValueError(f"{site}: the update has rank {update.rank}, the adapter {a.shape[0]}.")
        a[: update.rank] = torch.as_tensor(update.a).to(a)
        b[:, : update.rank] = torch.as_tensor(update.b / layer.scaling[slot]).to(b)
