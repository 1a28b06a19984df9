"""An image on its way through a base: prepared for its image path, then seen by it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """An image as the image path of a base takes it, on the CPU."""

    tensors: Mapping[str, Tensor]
    """By the names of the model's arguments, without a batch dimension: ``pixel_values`` ``(C, H, W)``, or of an image
    that is taken apart ``(N, ...)``."""
    grid: tuple[int, ...] = ()
    """How it is taken apart, as its family says; nothing where every image is one piece."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def digest(self, prompt: str = "") -> str:
        """Of all that the image path is given, and of the prompt that it is read with."""
        digest = hashlib.sha256(f"{self.grid} {len(prompt)} {prompt}".encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Features:
    """An image as a base's image path sees it."""

    values: Tensor
    """``(N, D)``, one row for each of its tokens; of ViLT its pixels."""
    grid: tuple[int, ...] = ()
    """That of its picture."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.values.nbytes

    def copy(self) -> "Features":
        """One that does not keep the batch that it was encoded in."""
        return Features(self.values.clone(), self.grid)

    def to(self, device: torch.device) -> "Features":
        """The same on a device."""
        return Features(self.values.to(device), self.grid)


def deal_positions(positions: int, lengths: Sequence[int]) -> list[int]:
    """How many of a layer's positions are each image's, where images are laid out one after the other.

    Args:
        positions: All of them. A layer may see several for a unit of length, or one for several.
        lengths: Of each image; see ``Family.lengths``.

    Raises:
        ValueError: They cannot be dealt out.
    """
    total = sum(lengths)
    if positions % total == 0:
        return [length * (positions // total) for length in lengths]
    several = total // positions if total % positions == 0 else 0
    if several and not any(length % several for length in lengths):
        return [length // several for length in lengths]
    raise ValueError(f"{positions} positions cannot be those of rows of the lengths {list(lengths)}.")


Look = Picture | Features
"""An image, seen already or not."""


def stacked(features: Sequence[Features]) -> Tensor:
    """``(B, N, D)`` of images that all have ``N`` tokens."""
    return torch.stack([one.values for one in features])


def of_rows(values: Tensor) -> list[Features]:
    """Features ``(B, N, D)`` image by image."""
    return [Features(row) for row in values]
