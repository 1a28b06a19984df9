"""Examples on their way to the Trainer: what a step needs of each image, kept in memory, and rows put together.

When an adapter does not touch the image path, that path is frozen, so an image's features are computed once per run
instead of its pixels at every step. The loss is the same to the last bit; only the work is less.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset, RandomSampler, Sampler

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import DataError
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.pictures import Features, Look, Picture
from lorax_vlm.training.distinct_images import ImagesTogether, distinct_batch
from lorax_vlm.training.feature_cache import FeatureCache, image_key

Encode = Callable[[Sequence[Picture], Sequence[str]], list[Features]]
"""The frozen image path: pictures, each with a prompt, to their features."""


LENGTHS = "image_lengths"


def make_dataset(examples: Sequence[Example] | Iterable[Example]) -> "ExampleDataset | ExampleStream":
    """Examples for the Trainer, in memory or as a stream."""
    return ExampleDataset(examples) if isinstance(examples, Sequence) else ExampleStream(examples)


class ExampleDataset(Dataset[Example]):
    """Examples by number."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class ExampleStream(IterableDataset[Example]):
    """Examples read as they are trained on, from the start again when they end.

    It never ends, so that a batch has its number in all readings together: ``Trainer`` continues a run by that number,
    and cannot know how many batches a reading of a stream has.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Example]:
        """All examples, again and again.

        Raises:
            DataError: There are none.
        """
        while True:
            empty = True
            for example in self.examples:
                empty = False
                yield example
            if empty:
                raise DataError("the stream", ["no row of it is left to train on"])


def make_sampler(dataset: Dataset[Example], rows_per_image: int, seed: int) -> Sampler[int] | None:
    """The order of a data set's examples: by chance, perhaps with an image's together. None for a stream."""
    if not isinstance(dataset, ExampleDataset):
        return None
    if rows_per_image > 1:
        return ImagesTogether(dataset.examples, rows_per_image, seed)
    return RandomSampler(dataset)


class FamilyCollator:
    """Examples to the tensors of one training step. Images are opened once, as far as memory allows."""

    def __init__(
        self,
        family: Family,
        encode: Encode | None = None,
        memory_bytes: int = 512 * 1024**2,
        cache: FeatureCache | None = None,
        distinct: bool = False,
        lengths: bool = False,
    ) -> None:
        """Start with nothing in memory.

        Args:
            family: Puts rows together.
            encode: The frozen image path, to keep features instead of pixels; None when an adapter changes it.
            memory_bytes: Most memory for what is kept of images.
            cache: Where features are kept on disk.
            distinct: Without ``encode``, give every distinct image of a batch once; see ``distinct_images.py``.
            lengths: Without ``encode``, say of each row how much of the image path its picture takes, as ``LENGTHS``.
        """
        self._tells_lengths = lengths and encode is None
        self._family, self._encode, self._cache = family, encode, cache
        self._distinct = distinct and encode is None and family.takes_features
        self._kept: dict[Hashable, Look] = {}
        self._room_bytes = memory_bytes

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Put rows together; see ``Family.training_batch``.

        Raises:
            ImageError: An image cannot be read.
            ExampleError: A row cannot be trained on.
        """
        rows = self._seen(examples)
        texts: dict[str, Any] = {
            "prompts": [example.prompt for example in examples],
            "targets": [example.target for example in examples],
            "answers": [example.answers for example in examples],
            "names": [example.name for example in examples],
        }
        pictures = [row for row in rows if isinstance(row, Picture)]
        if not self._distinct:
            batch = self._family.training_batch(rows, **texts)
            return {**batch, LENGTHS: self._family.lengths(pictures)} if self._tells_lengths else batch
        batch = self._family.text_batch(pictures, **texts)
        return distinct_batch(batch, pictures, [self._look_of(example) for example in examples])

    def _seen(self, examples: Sequence[Example]) -> list[Look]:
        """Each example's image, prepared or seen."""
        keys = [self._key(example) for example in examples]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: example for key, example in zip(keys, examples, strict=True) if key not in found}
        if missing:
            found |= zip(missing, self._look(list(missing.values())), strict=True)
        for key in missing:
            size = found[key].nbytes
            if size <= self._room_bytes:
                self._room_bytes -= size
                self._kept[key] = found[key]
        return [found[key] for key in keys]

    def _look(self, examples: Sequence[Example]) -> Sequence[Look]:
        images = [example.open_image() for example in examples]
        if self._encode is None:
            return self._family.prepare(images)
        prompts = [example.prompt for example in examples]
        if self._cache is None:
            return [row.copy() for row in self._encode(self._family.prepare(images), prompts)]
        read = prompts if self._family.image_path_reads_prompt else [""] * len(prompts)
        keys = [image_key(image, instruction) for image, instruction in zip(images, read, strict=True)]
        known = {key: features for key in keys if (features := self._cache.get(key)) is not None}
        new = list({key: row for row, key in enumerate(keys) if key not in known}.values())
        if new:
            encoded = self._encode(self._family.prepare([images[row] for row in new]), [prompts[row] for row in new])
            for row, features in zip(new, encoded, strict=True):
                known[keys[row]] = features.copy()
                self._cache.put(keys[row], features)
        device = encoded[0].values.device if new else next(iter(known.values())).values.device
        return [known[key].to(device) for key in keys]

    def _key(self, example: Example) -> Hashable:
        """What is kept: features, or pixels, which no prompt changes."""
        return self._look_of(example) if self._encode else example.image_key

    def _look_of(self, example: Example) -> Hashable:
        """What makes an image look different: itself, and for some families the prompt."""
        return (example.image_key, example.prompt) if self._family.image_path_reads_prompt else example.image_key
