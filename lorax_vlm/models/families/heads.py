"""A head over fixed answers, and what an adapter's own one is made of."""

import copy
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


class AnswerHead(nn.Sequential):
    """A classifier with the answers its outputs stand for: the two only make sense together."""

    def __init__(self, layers: Sequence[nn.Module], labels: Sequence[str]) -> None:
        super().__init__(*layers)
        self.labels = tuple(labels)


@runtime_checkable
class HasRowLabels(Protocol):
    """A head that stands for other answers in some rows of a batch."""

    def row_labels(self, count: int) -> list[tuple[str, ...] | None]:
        """The answers that each of ``count`` rows' logits stand for, None for the model's own."""
        ...


def row_labels(head: object, count: int) -> list[tuple[str, ...] | None]:
    """The answers that each row's logits of a head stand for, None for the model's own."""
    return head.row_labels(count) if isinstance(head, HasRowLabels) else [None] * count


def resize_head(head: nn.Sequential, labels: Sequence[str]) -> AnswerHead:
    """A copy of a head (``Linear, LayerNorm, GELU, Linear``) whose last layer is new, of one output per label."""
    layers: list[nn.Module] = list(copy.deepcopy(head))
    last: Any = layers.pop()
    fresh = nn.Linear(last.in_features, len(labels), device=last.weight.device, dtype=last.weight.dtype)
    return AnswerHead([*layers, fresh], labels)


def grow_head(head: nn.Sequential, labels: Sequence[str]) -> AnswerHead:
    """A copy of a head with further answers: known ones keep their rows, new ones start neutral and unlikely.

    Args:
        head: As for ``resize_head``.
        labels: The head's own answers in their order, then new ones.
    """
    grown = resize_head(head, labels)
    last, new = head[-1], grown[-1]
    assert isinstance(last, nn.Linear)
    assert isinstance(new, nn.Linear)
    known = last.out_features
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:known] = last.weight
        new.bias.fill_(last.bias.mean())
        new.bias[:known] = last.bias
    return grown
