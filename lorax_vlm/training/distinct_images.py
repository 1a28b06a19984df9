"""An image that several rows of a batch ask about is encoded once, also where the image path itself is trained.

Gradients are those of encoding it for every row, added up. Data with many questions per image gain most; so that a
batch has several of an image's rows, ``ImagesTogether`` deals them out next to each other.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from lorax_vlm.data.examples import Example
from lorax_vlm.models.families.base import Batch, Family
from lorax_vlm.models.families.pictures import Picture

ROWS, FIRST, PICTURES = "image_rows", "image_first", "image_pictures"


def encode_distinct(model: Any, family: Family) -> None:
    """Let a copy that is trained take the batches of ``distinct_batch``, beside usual ones."""
    model.forward = partial(_forward, model, family, model.forward)


def _forward(model: Any, family: Family, forward: Callable[..., Any], **inputs: Any) -> Any:
    if ROWS not in inputs:
        return forward(**inputs)
    rows, first, pictures = inputs.pop(ROWS), inputs.pop(FIRST), inputs.pop(PICTURES)
    first_rows = {key: value[first] for key, value in inputs.items() if isinstance(value, Tensor)}
    features = family.encode_batch(model, pictures, first_rows)
    return forward(**family.with_features(inputs, [features[row] for row in rows.tolist()]))


def distinct_batch(batch: Batch, pictures: Sequence[Picture], looks: Sequence[object]) -> dict[str, Any]:
    """A training batch with every distinct image once.

    Args:
        batch: Of ``Family.text_batch``.
        pictures: Of each row.
        looks: Equal for rows that see one image alike.

    Returns:
        The batch with the ``U`` distinct pictures as ``image_pictures``, each row's place among them as ``image_rows``
        ``(B,)``, and each image's first row as ``image_first`` ``(U,)``. What has ``B`` rows comes first: the Trainer
        counts by it.
    """
    first = {look: row for row, look in reversed(list(enumerate(looks)))}
    order = {look: place for place, look in enumerate(first)}
    return {
        **batch,
        ROWS: torch.tensor([order[look] for look in looks]),
        FIRST: torch.tensor(list(first.values())),
        PICTURES: [pictures[row] for row in first.values()],
    }


class ImagesTogether(Sampler[int]):
    """Every example once an epoch in random order, up to ``together`` of an image's examples next to each other."""

    def __init__(self, examples: Sequence[Example], together: int, seed: int) -> None:
        """Group examples by image; equal seeds give equal orders."""
        self._by_image: dict[Hashable, list[int]] = defaultdict(list)
        for number, example in enumerate(examples):
            self._by_image[example.image_key].append(number)
        self._count, self._together, self._seed, self._epoch = len(examples), together, seed, 0

    def __len__(self) -> int:
        return self._count

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed} {self._epoch}")
        groups = []
        for numbers in self._by_image.values():
            mixed = rng.sample(numbers, len(numbers))
            groups += [mixed[start : start + self._together] for start in range(0, len(mixed), self._together)]
        rng.shuffle(groups)
        return (number for group in groups for number in group)
