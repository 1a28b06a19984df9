"""Examples on their way to the Trainer: images decoded and preprocessed once, rows put together by the family."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lorax_vlm.data.examples import Example
from lorax_vlm.models.families.base import Batch, Family


class ExampleDataset(Dataset[dict[str, Any]]):
    """Examples with their pixels. Pixels stay in memory up to a budget, so later epochs need not decode again."""

    def __init__(self, examples: Sequence[Example], family: Family, memory_bytes: int = 512 * 1024**2) -> None:
        self.examples = examples
        self._family = family
        self._kept: dict[int, Tensor] = {}
        self._room_bytes = memory_bytes

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        return {
            "pixel_values": self._pixels(index),
            "prompt": example.prompt,
            "target": example.target,
            "answers": example.answers,
            "name": example.name,
        }

    def _pixels(self, index: int) -> Tensor:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._family.pixel_values([self.examples[index].open_image()])[0]
            if pixels.nbytes <= self._room_bytes:
                self._room_bytes -= pixels.nbytes
                self._kept[index] = pixels
        return pixels


class FamilyCollator:
    """Rows of ``ExampleDataset`` to the tensors of one training step."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """Put rows together; see ``Family.training_batch``."""
        return self._family.training_batch(
            self._family.stack_pixels([row["pixel_values"] for row in rows]),
            [row["prompt"] for row in rows],
            [row["target"] for row in rows],
            answers=[row["answers"] for row in rows],
            names=[row["name"] for row in rows],
        )
