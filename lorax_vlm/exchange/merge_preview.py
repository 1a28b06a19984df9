"""What merging adapters would combine: how much each brings, where they agree, what a rank would lose. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lorax_vlm.adapters.factors import Update, Updates, total_cosine, total_norm
from lorax_vlm.types import percent

_SAMPLED = 200_000


@dataclass(frozen=True)
class PairPreview:
    """How two adapters agree where both change the base."""

    first: str
    second: str
    sites: int
    """Those that both have."""
    cosine: float
    """Of the updates at these sites together: 1 the same direction, 0 unrelated, -1 opposed."""
    cosine_by_layer: Mapping[str, float]
    sign_conflicts: float
    """Share of the places, weighted by size, where they push in opposite directions; about .5 for unrelated ones."""


@dataclass(frozen=True)
class MergePreview:
    """What merging would combine; nothing is written."""

    norm_shares: Mapping[str, float]
    """Each adapter's share of the squared norms, weights included."""
    pairs: tuple[PairPreview, ...]
    exact_rank: int
    """Largest rank of the exact sum."""
    rank_95: int
    """Largest rank that any site needs for 95 % of the sum's squared norm."""
    errors: Mapping[int, float]
    """What is lost of the sum, relative to its norm, by rank."""

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{name}: {percent(share)} of the squared norms" for name, share in self.norm_shares.items()]
        for pair in self.pairs:
            lines.append(
                f"{pair.first} and {pair.second}: {pair.sites} sites in both, cosine {pair.cosine:+.3f}, "
                f"sign conflicts {percent(pair.sign_conflicts)}"
            )
            opposed = sorted(pair.cosine_by_layer.items(), key=lambda item: item[1])[:3]
            lines += [f"  {site}: cosine {cosine:+.3f}" for site, cosine in opposed]
        lines.append(f"exact sum: rank {self.exact_rank}; rank {self.rank_95} holds 95 % of every site's squared norm")
        return [*lines, *(f"  rank {rank}: loses {percent(error)}" for rank, error in self.errors.items())]


def preview_merge(adapters: Mapping[str, Updates], weights: Sequence[float]) -> MergePreview:
    """Look before merging.

    Args:
        adapters: Updates by site, by name of the adapter.
        weights: One per adapter.
    """
    scaled = dict(zip(adapters, weighted(list(adapters.values()), weights), strict=True))
    squares = {name: total_norm(updates) ** 2 for name, updates in scaled.items()}
    total = sum(squares.values()) or 1.0
    summed = exact_sum(list(scaled.values()))
    ranks = sorted({rank for rank in (4, 8, 16, 32, 64) if rank < max(u.rank for u in summed.values())})
    return MergePreview(
        norm_shares={name: square / total for name, square in squares.items()},
        pairs=tuple(_preview_pair(*pair) for pair in combinations(scaled.items(), 2)),
        exact_rank=max(update.rank for update in summed.values()),
        rank_95=max(update.rank_for() for update in summed.values()),
        errors={rank: _lost(summed, rank) for rank in ranks},
    )


def weighted(adapters: Sequence[Updates], weights: Sequence[float]) -> list[Updates]:
    """Each adapter's updates times its weight."""
    return [{s: u * weight for s, u in own.items()} for own, weight in zip(adapters, weights, strict=True)]


def exact_sum(adapters: Sequence[Updates]) -> dict[str, Update]:
    """The sum of some adapters' updates, site by site, without loss."""
    summed: dict[str, Update] = {}
    for updates in adapters:
        for site, update in updates.items():
            summed[site] = summed[site] + update if site in summed else update
    return summed


def _lost(summed: Updates, rank: int) -> float:
    """What all sites together lose when each keeps its largest singular values."""
    lost = sum(float((update.singular_values[rank:] ** 2).sum()) for update in summed.values())
    return float(np.sqrt(lost) / total_norm(summed)) if lost else 0.0


def _preview_pair(one: tuple[str, Updates], other: tuple[str, Updates]) -> PairPreview:
    (first, mine), (second, theirs) = one, other
    shared = [site for site in mine if site in theirs]
    return PairPreview(
        first,
        second,
        len(shared),
        total_cosine(mine, theirs, shared),
        {site: mine[site].cosine(theirs[site]) for site in shared},
        _sign_conflicts(mine, theirs, shared),
    )


def _sign_conflicts(mine: Updates, theirs: Updates, sites: Sequence[str]) -> float:
    """Over a sample of places of every site, so that no whole matrix is needed."""
    rng = np.random.default_rng(0)
    opposed = weight = 0.0
    for site in sites:
        a, b = mine[site], theirs[site]
        count = min(_SAMPLED, a.shape[0] * a.shape[1])
        rows, columns = rng.integers(a.shape[0], size=count), rng.integers(a.shape[1], size=count)
        values = [np.einsum("nr,rn->n", u.b[rows], u.a[:, columns]) for u in (a, b)]
        size = np.abs(values[0] * values[1])
        opposed += float(size[values[0] * values[1] < 0].sum())
        weight += float(size.sum())
    return opposed / weight if weight else 0.0
