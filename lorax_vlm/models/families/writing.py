"""What families share that write their answers, token by token."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.base import IGNORED_LABEL, Batch, Family, TrainingBatches
from lorax_vlm.models.families.pictures import Features


class WritingFamily(TrainingBatches):
    """No fixed answers, and as sure of a text as of its tokens."""

    name: str
    labels: tuple[str, ...] = ()
    ends: frozenset[int]
    """The tokens that end a text."""

    def with_labels(self, labels: Sequence[str]) -> Self:
        """Itself: it has no labels.

        Raises:
            UsageError: There are some.
        """
        if labels:
            raise UsageError(f"{self.name} writes its answers; it has no head for {len(labels)} fixed ones.")
        return self

    def plan_labels(self, answers: Sequence[Sequence[str]], min_count: int = 2) -> None:
        """It needs none."""

    def can_answer(self, answers: Sequence[str]) -> bool:
        """It can write any answer."""
        return True

    def ends_with_eos(self, batch: Batch, index: int) -> bool:
        """Whether the last label is a token that ends a text."""
        labels = batch["labels"][index]
        return int(labels[labels != IGNORED_LABEL][-1]) in self.ends

    @torch.no_grad()
    def confidences(
        self: Family, model: Any, features: Sequence[Features], prompts: Sequence[str], texts: Sequence[str]
    ) -> list[float]:
        """The geometric mean of the probabilities of a text's tokens and its end; see ``Family.confidences``."""
        said = [text if text.strip() else "nothing" for text in texts]
        batch = {key: value.to(model.device) for key, value in self.text_batch(features, prompts, said).items()}
        labels = batch.pop("labels")
        logits = model(**self.with_features(batch, features)).logits
        found = []
        for row, text in enumerate(texts):
            own = labels[row : row + 1]
            loss = float(self.loss(logits[row : row + 1], own, int((own != IGNORED_LABEL).sum())))
            found.append(float(torch.exp(torch.tensor(-loss))) if text.strip() else 0.0)
        return found
