"""Where in a model a number first stopped being one."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def find_nonfinite_module(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Repeat a forward pass and name the first module whose output is not finite, None when all are."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not found and any(isinstance(t, Tensor) and not torch.isfinite(t).all() for t in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**{key: value for key, value in inputs.items() if key != "labels"})
    finally:
        for handle in handles:
            handle.remove()
    return found[0].replace("base_model.model.", "") if found else None
