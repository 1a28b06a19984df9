"""A model's module tree apart from its weights: copied without copying them, so that a copy may be changed freely."""

import copy
import itertools
from typing import Any

from torch import nn


class WrappingLayer(nn.Module):
    """A layer of ours around one of the base's, which stays reachable as ``base_layer``."""

    base_layer: nn.Module


def plain_copy(model: Any) -> Any:
    """The same frozen model in other modules: every parameter and buffer is shared, no wrapping layer is left.

    What is done to the copy's modules (PEFT's layers, another attention function, hooks) does not reach the model.
    Writing *into* a tensor would; nothing here does.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    twin = copy.deepcopy(model, dict(shared))
    wrappers = [name for name, module in twin.named_modules() if isinstance(module, WrappingLayer)]
    for name in wrappers:
        twin.set_submodule(name, twin.get_submodule(name).base_layer)
    return twin
