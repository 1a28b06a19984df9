"""What every model family answers. One file per architecture beside this one implements it.

A family turns (images, prompts, targets) into its architecture's tensors and what the model puts out back into text.
It holds no weights: the model is always passed in, so the same family serves the plain base and the base with adapters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.pictures import Features, Look, Picture
from lorax_vlm.models.families.text import require_equal_rows
from lorax_vlm.types import Generated, GenerationSettings, percent

Batch = dict[str, Tensor]
IGNORED_LABEL = -100


@dataclass(frozen=True)
class LabelPlan:
    """Which answers a training of a model that chooses needs, and how much of its data they cover."""

    labels: tuple[str, ...]
    """The checkpoint's own answers, then those added."""
    added: tuple[str, ...]
    coverage: float
    """Share of the training examples with at least one answer among ``labels``."""

    def summary(self) -> str:
        """One line for people."""
        added = f", {len(self.added)} of them new ({', '.join(self.added[:5])}...)" if self.added else ""
        return f"{len(self.labels)} answers{added}; they cover {percent(self.coverage)} of the training examples."


class Family(Protocol):
    """Shapes: ``B`` rows, ``T`` tokens, ``N`` tokens of an image, ``D`` width of the language model."""

    name: str
    """That of its row in ``models/spec.py``."""
    model_class: ClassVar[Any]
    """The class of transformers whose ``from_pretrained`` loads the weights."""
    unquantized: ClassVar[tuple[str, ...]]
    """Modules that stay as they are when a base is quantised; given, this list replaces the library's own."""
    tokenizer: Any
    processor: Any
    labels: tuple[str, ...]
    """The fixed answers that it chooses among; empty for a family that writes."""
    image_path_reads_prompt: bool
    """Whether an image looks different for another prompt, so that features belong to an (image, prompt) pair."""

    takes_features: bool
    """Whether the model's forward pass accepts encoded images in the place of pixels."""

    packs: bool
    """Whether its language model takes the packed rows of ``packing.py``."""

    @property
    def chosen(self) -> Mapping[str, Any]:
        """What was chosen of it when it was loaded, such as ``image_tokens``; adapters must have the same."""
        ...

    @staticmethod
    def load_processor(folder: Path) -> Any:
        """Image processor and tokenizer of a checkpoint's folder."""
        ...

    @staticmethod
    def after_loading(model: Any, checkpoint: str) -> None:
        """Put right what transformers leaves wrong in a loaded model.

        Raises:
            CheckpointError: That cannot be.
        """
        ...

    def __init__(self, processor: Any, config: Any, checkpoint: str) -> None:
        """Check that processor and configuration agree.

        Raises:
            CheckpointError: They do not.
        """
        ...

    def with_labels(self, labels: Sequence[str]) -> Self:
        """The same family over other answers; itself where there are none.

        Raises:
            UsageError: There are some, and it writes.
        """
        ...

    def with_image_tokens(self, most: int) -> Self:
        """The same family with images of up to so many tokens.

        Raises:
            UsageError: All its images have the same number of tokens, or more than ``most``.
        """
        ...

    def plan_labels(self, answers: Sequence[Sequence[str]], min_count: int = 2) -> LabelPlan | None:
        """The answers that a training needs; None for a family that writes.

        Args:
            answers: The annotators' answers per training example.
            min_count: Examples that an answer must be the most frequent one of to be added.
        """
        ...

    def can_answer(self, answers: Sequence[str]) -> bool:
        """Whether any of an example's answers is one that it can give."""
        ...

    def prepare(self, images: Sequence[Image.Image]) -> list[Picture]:
        """Preprocess RGB images; each is what it is alone, float32."""
        ...

    def pixel_batch(self, pictures: Sequence[Picture]) -> Batch:
        """The model's arguments for some pictures, put together."""
        ...

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """How much of the image path's positions each picture takes, in any unit: patches, tiles, or one each."""
        ...

    def text_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> Batch:
        """The texts of one training step, labels included, in which every image has its place.

        Labels carry loss on the target and its end token only. ``names`` identify the rows in errors.

        Args:
            looks: The image of each row.
            prompts: One per row.
            targets: One per row: the text to learn.
            answers: The answers of all annotators per row, where they are known; a classifier learns their shares.
            names: One per row.

        Raises:
            ExampleError: A target is empty or unknown, or a row does not fit the model's positions.
        """
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise ``PromptError`` when a prompt does not fit the model, so that it fails alone and not its batch."""
        ...

    def check_example(self, prompt: str, target: str, answers: Sequence[str], name: str) -> None:
        """Raise ``ExampleError`` when a row cannot be trained on, as ``training_batch`` would, without its image."""
        ...

    def training_batch(
        self,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> dict[str, Any]:
        """What the model takes in one training step: ``text_batch`` with the images, all prepared or all seen."""
        ...

    def encode_images(self, model: Any, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Features]:
        """The part of the forward pass that comes before the language model.

        Unless ``image_path_reads_prompt`` the prompts do not enter, and features serve any prompt.
        """
        ...

    def encode_batch(self, model: Any, pictures: Sequence[Picture], batch: Batch) -> list[Features]:
        """As ``encode_images``; what the image path reads comes from a ``text_batch`` with a row for each picture."""
        ...

    def with_features(self, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """A ``text_batch`` with each row's image as it was seen: the model then skips its image path."""
        ...

    def generate(
        self,
        model: Any,
        features: Sequence[Features],
        prompts: Sequence[str],
        settings: GenerationSettings,
        seeds: Sequence[int] | None = None,
    ) -> list[Generated]:
        """Answer each prompt given its image's features; ``features[b]`` belong to ``prompts[b]``.

        Args:
            model: With the adapters in effect.
            features: Of ``encode_images``.
            prompts: One per row.
            settings: Decoding.
            seeds: Of each row's noise, where settings have a temperature and a seed. None: without one.

        Raises:
            ValueError: The numbers of rows differ.
        """
        ...

    def confidences(
        self, model: Any, features: Sequence[Features], prompts: Sequence[str], texts: Sequence[str]
    ) -> list[float]:
        """How sure a model is of texts it generated: the mean probability of a text's tokens, or that of its answer.

        Args:
            model: With the adapter in effect that said them.
            features: Of ``encode_images``.
            prompts: One per row.
            texts: What ``generate`` said to them; of an empty one it is 0.
        """
        ...

    def answer_logits(self, model: Any, features: Sequence[Features], prompts: Sequence[str]) -> Tensor:
        """What the first token of each answer, or ViLT's answer, is chosen by: ``(B, V)``, float32."""
        ...

    def loss(self, logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
        """The training loss, a scalar in float32.

        Args:
            logits: What the model puts out for a training batch.
            labels: The batch's labels.
            normalizer: Number of labels (those unequal to ``IGNORED_LABEL``) to divide the sum by. Under gradient
                accumulation it counts the whole step, so that one step of four rows equals four accumulated rows.
                None: those of this batch.
        """
        ...

    def explain_row(self, batch: Batch, index: int) -> list[tuple[str, bool]]:
        """The pieces of one row of a training batch in order, each with whether it carries loss."""
        ...

    def ends_with_eos(self, batch: Batch, index: int) -> bool:
        """Whether the last label of a row is the model's end; else the model would never learn to stop."""
        ...


class TrainingBatches:
    """How a family puts texts and images together, all of one size unless it says otherwise."""

    name: str

    @property
    def chosen(self) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def with_image_tokens(self, most: int) -> Self:
        """See ``Family.with_image_tokens``."""
        raise UsageError(f"image_tokens is {most}, and all images of {self.name} take the same number of tokens.")

    def training_batch(
        self: Family,
        looks: Sequence[Look],
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        answers: Sequence[Sequence[str]] = (),
        names: Sequence[str] = (),
    ) -> dict[str, Any]:
        """See ``Family.training_batch``.

        Raises:
            ValueError: The numbers of rows differ, or some images are seen and others are not.
        """
        require_equal_rows(images=len(looks), prompts=len(prompts), targets=len(targets))
        batch = self.text_batch(looks, prompts, targets, answers=answers, names=names)
        pictures = [look for look in looks if isinstance(look, Picture)]
        features = [look for look in looks if isinstance(look, Features)]
        if not pictures:
            return self.with_features(batch, features)
        require_equal_rows(pictures=len(pictures), images=len(looks))
        return {**batch, **self.pixel_batch(pictures)}


def target_loss(logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
    """Next-token cross-entropy over the labelled positions of a decoder-only model.

    Args:
        logits: ``(B, T, V)``; position ``t`` predicts the token at ``t + 1``.
        labels: ``(B, T)``, ``IGNORED_LABEL`` where no loss is due.
        normalizer: As for ``Family.loss``.
    """
    return token_loss(logits[:, :-1], labels[:, 1:], normalizer)


def token_loss(logits: Tensor, labels: Tensor, normalizer: Tensor | int | None = None) -> Tensor:
    """Cross-entropy where position ``t`` of ``logits`` ``(B, T, V)`` predicts label ``t`` of ``(B, T)``."""
    labels = labels.to(logits.device)
    if normalizer is None:
        normalizer = int((labels != IGNORED_LABEL).sum())
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / normalizer
