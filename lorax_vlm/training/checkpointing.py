"""Gradient checkpointing for a base in evaluation mode, where the library's own is silently off."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: nn.Module, wanted: bool = True) -> None:
    """Let every transformer layer be computed again in the backward pass, instead of keeping what is inside.

    transformers does so in training mode only, but the frozen base stays in evaluation mode.
    """
    for module in model.modules():
        if wanted and isinstance(module, GradientCheckpointingLayer):
            module.forward = partial(_run, module.forward)


def _run(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    for key in ("past_key_values", "use_cache"):  # a second pass would append to the cache again
        if key in kwargs:
            kwargs[key] = None if key == "past_key_values" else False
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
