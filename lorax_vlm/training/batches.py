"""Examples on their way to the Trainer: images decoded and preprocessed once, rows put together by the family."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from lorax_vlm.data.examples import Example
from lorax_vlm.models.families.base import Batch, Family


def make_dataset(examples: Sequence[Example] | Iterable[Example], family: Family) -> "ExampleDataset | ExampleStream":
    """Examples for the Trainer, in memory or as a stream."""
    return ExampleDataset(examples, family) if isinstance(examples, Sequence) else ExampleStream(examples, family)


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
        return _row(self.examples[index], self._pixels(index))

    def _pixels(self, index: int) -> Tensor:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self._family.pixel_values([self.examples[index].open_image()])[0]
            if pixels.nbytes <= self._room_bytes:
                self._room_bytes -= pixels.nbytes
                self._kept[index] = pixels
        return pixels


class ExampleStream(IterableDataset[dict[str, Any]]):
    """Examples read as they are trained on, from the start again when they end."""

    def __init__(self, examples: Iterable[Example], family: Family) -> None:
        self._examples, self._family = examples, family

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for example in self._examples:
            yield _row(example, self._family.pixel_values([example.open_image()])[0])


def _row(example: Example, pixels: Tensor) -> dict[str, Any]:
    return {
        "pixel_values": pixels,
        "prompt": example.prompt,
        "target": example.target,
        "answers": example.answers,
        "name": example.name,
    }


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
