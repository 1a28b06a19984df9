"""An adapter's weights in memory: per site a pair of factors, and perhaps a head over fixed answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load
from torch import Tensor, nn

from lorax_vlm.adapters.files import AdapterBytes, AdapterFiles, with_weights
from lorax_vlm.models.families.heads import AnswerHead, resize_head
from lorax_vlm.models.spec import HEAD

Factors = tuple[Tensor, Tensor]
"""``A (R, D_in)`` and ``B (D_out, R)``, the scaling folded into ``B``."""


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """Never changed once made: a call that uses them keeps them, whatever is loaded or leaves meanwhile."""

    factors: Mapping[str, Factors]
    """By module name in the base."""
    head: AnswerHead | None = None

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        tensors = [tensor for pair in self.factors.values() for tensor in pair]
        if self.head is not None:
            tensors += self.head.parameters()
        return sum(tensor.nbytes for tensor in tensors)


def weights_nbytes(files: AdapterFiles, dtype: torch.dtype) -> int:
    """What ``load_weights`` will take, by the shapes alone; heads stay in float32."""
    numbers = sum(math.prod(a.shape) + math.prod(b.shape) for a, b in files.factors.values())
    head = sum(math.prod(tensor.shape) for tensor in files.head.values())
    return numbers * dtype.itemsize + 4 * head


def load_weights(
    adapter: AdapterBytes | AdapterFiles,
    dtype: torch.dtype,
    device: torch.device | str,
    base_head: nn.Sequential | None = None,
    labels: Sequence[str] = (),
) -> AdapterWeights:
    """Bring an adapter's tensors to where they compute: out of the very bytes that were checked.

    Args:
        adapter: A checked PEFT directory; its weights are read again when they were let go.
        dtype: Of the base's computation; factors are kept in it.
        device: Where the base is.
        base_head: The base's head over fixed answers, when the adapter brings one.
        labels: The answers its outputs stand for.

    Raises:
        DamagedAdapter: They were let go, and are not the same any more.
    """
    adapter = with_weights(adapter)
    # Not by safe_open, which never frees two Python integers for every tensor it gives (safetensors 0.8.0):
    # with thousands of requests that is megabytes.
    files, stored = adapter.files, load(adapter.data)

    def factor(site: str, which: str, scaling: float) -> Tensor:
        # Multiplied before it is rounded to the base's precision.
        tensor = stored[f"base_model.model.{site}.lora_{which}.weight"].to(device)
        return (tensor if scaling == 1 else tensor * scaling).to(dtype)

    factors = {site: (factor(site, "A", 1.0), factor(site, "B", files.scaling(site))) for site in files.sites}
    head = None
    if files.head and base_head is not None:
        head = resize_head(base_head, labels)
        prefix = f"{HEAD}."
        head.load_state_dict({name.removeprefix(prefix): stored[f"base_model.model.{name}"] for name in files.head})
        head.to(device).eval().requires_grad_(False)
    return AdapterWeights(factors, head)
