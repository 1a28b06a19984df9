"""The routed LoRA layer: one base, any mix of adapters and plain rows in a batch.

A call says which adapter each of its rows uses; every adapted linear layer then adds each row's own low-rank update in
one pair of matrix products. What is routed belongs to the call (a context variable), so threads that share a base do
not see each other's, and nothing is left behind whatever happens inside.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorax_vlm.models.families.heads import AnswerHead
from lorax_vlm.models.families.pictures import deal_positions
from lorax_vlm.models.structure import WrappingLayer
from lorax_vlm.runtime.weights import AdapterWeights, Factors

MAX_CONCATENATED = 4
"""Adapters in a call, counted twice where rows have several positions, up to which concatenated factors are the faster
way; beyond, each row's own factors are gathered. Concatenation computes every adapter for every position and masks the
others out; gathering reads each row's factors from memory, once for all its positions. Measured on a CPU by
``benchmarks/routing_strategy.py``."""


class Routing:
    """Which adapter each row of one call uses. Factors are put together once per call and layer."""

    def __init__(self, rows: Sequence[AdapterWeights | None], lengths: Sequence[int] | None = None) -> None:
        """Route ``rows[b]``'s adapter, None for the plain base, to row ``b``.

        Args:
            rows: One per row.
            lengths: How much of the positions each row takes, in any unit; see ``Family.lengths``. None: all as much.
        """
        if not rows:
            raise ValueError("A call needs at least one row.")
        if lengths is not None and len(lengths) != len(rows):
            raise ValueError(f"{len(rows)} rows cannot have {len(lengths)} lengths.")
        self.rows = tuple(rows)
        self._lengths = tuple(lengths) if lengths is not None and len(set(lengths)) > 1 else None
        self._adapters = list(dict.fromkeys(weights for weights in rows if weights is not None))
        self._present: dict[str, int] = {}
        self._prepared: dict[tuple[str, bool], tuple[Tensor, Tensor, Tensor | None]] = {}

    def add_update(self, site: str, x: Tensor, output: Tensor) -> Tensor:
        """``output`` with every row's update ``x A^T B^T`` at a site.

        Rows may have been repeated in place, as beam search does, or flattened with their positions, as OPT does: the
        leading dimensions always hold a whole number of positions per row, in the order of the rows; equally many of
        each, or in the proportions of the call's lengths.

        Args:
            site: Module name in the base.
            x: ``(..., D_in)``, input of the layer.
            output: ``(..., D_out)`` of the plain layer.

        Raises:
            ValueError: The positions cannot be dealt out evenly to the rows.
        """
        present = self._present.get(site)
        if present is None:
            present = self._present[site] = sum(site in weights.factors for weights in self._adapters)
        if not present:
            return output
        positions = x.numel() // x.shape[-1]
        if self._lengths is not None:
            a, b, mask = self._concatenated(site, x)
            hidden = x.reshape(positions, x.shape[-1]) @ a
            if mask is not None:
                counts = torch.tensor(deal_positions(positions, self._lengths), device=x.device)
                hidden = hidden * mask.repeat_interleave(counts, dim=0)
            return torch.addmm(output.reshape(positions, output.shape[-1]), hidden, b).reshape(output.shape)
        per_row, rest = divmod(positions, len(self.rows))
        if rest:
            raise ValueError(f"{site}: {positions} positions cannot be those of {len(self.rows)} rows.")
        if present * min(per_row, 2) > MAX_CONCATENATED and len(self.rows) > 1:
            a, b, _ = self._gathered(site, x)
            by_row = x.reshape(len(self.rows), per_row, x.shape[-1])
            flat = output.reshape(len(self.rows), per_row, output.shape[-1])
            return torch.baddbmm(flat, torch.bmm(by_row, a), b).reshape(output.shape)
        a, b, mask = self._concatenated(site, x)
        hidden = x.reshape(positions, x.shape[-1]) @ a
        if mask is not None:
            hidden = hidden * (mask if per_row == 1 else mask.repeat_interleave(per_row, dim=0))
        return torch.addmm(output.reshape(positions, output.shape[-1]), hidden, b).reshape(output.shape)

    def _concatenated(self, site: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """``A (D_in, K)``, ``B (K, D_out)`` of all adapters side by side, and ``(B, K)`` keeping each row's own.

        The mask is None where all rows use one adapter.
        """
        if (known := self._prepared.get((site, False))) is not None:
            return known
        found = [
            (weights, *_cast(weights.factors[site], like)) for weights in self._adapters if site in weights.factors
        ]
        a = torch.cat([a for _, a, _ in found]).T
        b = torch.cat([b for _, _, b in found], dim=1).T
        mask = None
        if len(found) > 1 or any(row is not found[0][0] for row in self.rows):
            owned = [[row is weights for weights, _, _ in found] for row in self.rows]
            ranks = torch.tensor([a.shape[0] for _, a, _ in found], device=like.device)
            owner = torch.tensor(owned, dtype=like.dtype, device=like.device)
            mask = owner.repeat_interleave(ranks, dim=1)
        self._prepared[site, False] = a, b, mask
        return a, b, mask

    def _gathered(self, site: str, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Each row's own ``A (B, D_in, R)`` and ``B (B, R, D_out)``; smaller ranks and plain rows filled with zeros."""
        if (known := self._prepared.get((site, True))) is not None:
            return known
        cast = {weights: _cast(weights.factors[site], like) for weights in self._adapters if site in weights.factors}
        rank = max(a.shape[0] for a, _ in cast.values())
        any_a, any_b = next(iter(cast.values()))
        plain = any_a.new_zeros(rank, any_a.shape[1]), any_b.new_zeros(any_b.shape[0], rank)
        padded: dict[AdapterWeights | None, tuple[Tensor, Tensor]] = {
            weights: (
                nn.functional.pad(a, (0, 0, 0, rank - a.shape[0])),
                nn.functional.pad(b, (0, rank - b.shape[1])),
            )
            for weights, (a, b) in cast.items()
        }
        own = [padded.get(row, plain) for row in self.rows]
        made = torch.stack([a for a, _ in own]).mT, torch.stack([b for _, b in own]).mT, None
        self._prepared[site, True] = made
        return made


def _cast(factors: Factors, like: Tensor) -> Factors:
    a, b = factors
    return a.to(like.device, like.dtype), b.to(like.device, like.dtype)


_routing: ContextVar[Routing | None] = ContextVar("lorax_vlm_routing", default=None)


@contextmanager
def routed(rows: Sequence[AdapterWeights | None], lengths: Sequence[int] | None = None) -> Iterator[None]:
    """Run a block in which row ``b`` of every batch uses ``rows[b]``, None for the plain base.

    The block's batches must have these rows, or a whole multiple of them in the same order. With ``lengths`` they are
    those of an image path that lays images of several sizes out one after the other; see ``Routing``.
    """
    token = _routing.set(Routing(rows, lengths))
    try:
        yield
    finally:
        _routing.reset(token)


class RoutedLinear(WrappingLayer):
    """A linear layer (``nn.Linear`` or a quantised one) that adds the update its call asks for, and nothing else."""

    def __init__(self, base_layer: nn.Module, site: str) -> None:
        """Wrap ``base_layer``, whose name in the base is ``site``."""
        super().__init__()
        self.base_layer, self.site = base_layer, site

    def __getattr__(self, name: str) -> Any:
        """Weight, bias and sizes are those of the base layer: models look at them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D_in)`` to ``(..., D_out)``."""
        output: Tensor = self.base_layer(x)
        routing = _routing.get()
        return output if routing is None else routing.add_update(self.site, x, output)


class RoutedHead(WrappingLayer):
    """A head over fixed answers: each row goes through the head of its adapter, or through the base's."""

    def __init__(self, base_layer: nn.Sequential) -> None:
        super().__init__()
        self.base_layer = base_layer

    def __getitem__(self, index: int) -> Any:
        """A layer of the base's head."""
        return cast(nn.Sequential, self.base_layer)[index]

    def forward(self, x: Tensor) -> Tensor:
        """Pooled states ``(B, D)`` to logits ``(B, L)``; a row with fewer answers than others ends in -inf."""
        own = self._own_heads(len(x))
        if not any(own):
            logits: Tensor = self.base_layer(x)
            return logits
        # Every row passes through whole batches, so that a plain row is the base's to the last bit.
        by_head = {head: (head or self.base_layer)(x) for head in dict.fromkeys(own)}
        width = max(logits.shape[1] for logits in by_head.values())
        rows = [
            nn.functional.pad(by_head[head][index], (0, width - by_head[head].shape[1]), value=-torch.inf)
            for index, head in enumerate(own)
        ]
        return torch.stack(rows)

    def row_labels(self, count: int) -> list[tuple[str, ...] | None]:
        """The answers that each row's logits stand for, None for the base's own."""
        return [head.labels if head is not None else None for head in self._own_heads(count)]

    def _own_heads(self, count: int) -> list[AnswerHead | None]:
        routing = _routing.get()
        if routing is None:
            return [None] * count
        repeats, rest = divmod(count, len(routing.rows))
        if rest:
            raise ValueError(f"{count} rows reached the head of a call of {len(routing.rows)}.")
        return [weights.head if weights is not None else None for weights in routing.rows for _ in range(repeats)]
