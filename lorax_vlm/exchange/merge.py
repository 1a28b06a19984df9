"""Several adapters of one base as one.

``cat`` is exact: the updates are put side by side, the ranks add up, and the result is the weighted sum, no more and
no less. ``svd`` brings that sum back to a rank and says what is lost. ``linear``, ``ties`` and ``dare`` are PEFT's, on
whole updates: its plain versions combine A and B apart, which adds products of one adapter's A with another's B.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorax_vlm.adapters.factors import Update, Updates, read_updates, total_cosine, total_distance, total_norm
from lorax_vlm.adapters.files import AdapterBytes
from lorax_vlm.adapters.manifest import Manifest, Parent
from lorax_vlm.adapters.peft_config import MAX_RANK
from lorax_vlm.adapters.store import StoredAdapter
from lorax_vlm.errors import IncompatibleAdapter, UsageError
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.runtime.library import AdapterLibrary

Method = Literal["cat", "svd", "linear", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)
_OF_PEFT = {"linear": "svd", "ties": "ties_svd", "dare": "dare_linear_svd"}
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
        lines = [f"{name}: {share:.1%} of the squared norms" for name, share in self.norm_shares.items()]
        for pair in self.pairs:
            lines.append(
                f"{pair.first} and {pair.second}: {pair.sites} sites in both, cosine {pair.cosine:+.3f}, "
                f"sign conflicts {pair.sign_conflicts:.1%}"
            )
            opposed = sorted(pair.cosine_by_layer.items(), key=lambda item: item[1])[:3]
            lines += [f"  {site}: cosine {cosine:+.3f}" for site, cosine in opposed]
        lines.append(f"exact sum: rank {self.exact_rank}; rank {self.rank_95} holds 95 % of every site's squared norm")
        return [*lines, *(f"  rank {rank}: loses {error:.1%}" for rank, error in self.errors.items())]


@dataclass(frozen=True)
class MergeReport:
    """What merging did."""

    method: Method
    rank: int
    error: float
    """Distance to the exact weighted sum, relative to its norm; ``ties`` and ``dare`` drop something on purpose."""
    preview: MergePreview


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


def merge_updates(
    adapters: Sequence[Updates],
    weights: Sequence[float],
    method: Method,
    *,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, Update]:
    """One update per site.

    Args:
        adapters: Updates by site.
        weights: One per adapter.
        method: One of ``METHODS``.
        rank: Most ranks per site; not for ``cat``. None: the largest of the adapters.
        density: Share of the values that ``ties`` and ``dare`` keep.
        seed: For ``dare``, which drops at random.

    Raises:
        UsageError: The method is unknown, or the weights do not match.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown method {method!r}. Known: {', '.join(METHODS)}.")
    if len(weights) != len(adapters) or not adapters:
        raise UsageError(f"One weight per adapter is needed, got {len(weights)} for {len(adapters)}.")
    kept = rank or max(update.rank for updates in adapters for update in updates.values())
    if method in ("cat", "svd"):
        summed = exact_sum(weighted(adapters, weights))
        return summed if method == "cat" else {site: update.truncated(kept) for site, update in summed.items()}
    sites = sorted({site for updates in adapters for site in updates})
    torch.manual_seed(seed)
    return {site: _merge_by_peft(site, adapters, weights, method, kept, density) for site in sites}


class _OneSite(nn.Module):
    """As much of a model as PEFT needs to merge one site."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.site = nn.Linear(width_in, width_out, bias=False)


def _merge_by_peft(
    site: str,
    adapters: Sequence[Updates],
    weights: Sequence[float],
    method: Method,
    rank: int,
    density: float,
) -> Update:
    own = [(updates[site], weight) for updates, weight in zip(adapters, weights, strict=True) if site in updates]
    width_out, width_in = own[0][0].shape
    model = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model without a configuration
        for index, (update, _) in enumerate(own):
            config = LoraConfig(r=update.rank, lora_alpha=update.rank, target_modules=["site"])
            if model is None:
                model = get_peft_model(_OneSite(width_in, width_out), config, adapter_name="a0")
            else:
                model.add_adapter(f"a{index}", config)
            layer = model.base_model.model.site
            layer.lora_A[f"a{index}"].weight.data = torch.as_tensor(update.a, dtype=torch.float32)
            layer.lora_B[f"a{index}"].weight.data = torch.as_tensor(update.b, dtype=torch.float32)
        assert model is not None
        options = {} if method == "linear" else {"density": density}
        model.add_weighted_adapter(
            [f"a{index}" for index in range(len(own))],
            [weight for _, weight in own],
            "merged",
            combination_type=_OF_PEFT[method],
            svd_rank=min(rank, width_in, width_out),
            **options,
        )
    layer = model.base_model.model.site
    scaling = layer.scaling["merged"]
    a, b = (getattr(layer, f"lora_{f}")["merged"].weight.detach().double().numpy() for f in "AB")
    return Update(a, b * scaling)


def merge_adapters(
    library: AdapterLibrary,
    names: Sequence[str],
    new_name: str,
    *,
    weights: Sequence[float] | None = None,
    method: Method = "cat",
    rank: int | None = None,
    density: float = 0.5,
    run_dir: Path,
    replace: bool = False,
) -> tuple[StoredAdapter, MergeReport]:
    """Merge adapters of one base and store the result.

    Args:
        library: Of their base.
        names: Two or more adapters.
        new_name: For the result.
        weights: One per adapter. None: 1 each, the sum.
        method: One of ``METHODS``.
        rank: As for ``merge_updates``.
        density: As for ``merge_updates``.
        run_dir: For the files before they are stored.
        replace: Make a new version when ``new_name`` exists.

    Raises:
        UsageError: Fewer than two adapters, an unknown method, or the exact sum's rank is above the limit.
        IncompatibleAdapter: They are not all plain adapters of this very base.
        AdapterExists: ``new_name`` is taken.
    """
    if len(names) < 2:
        raise UsageError(f"Merging needs at least two adapters, got {list(names)}.")
    library.require_free(new_name, replace)
    found = [library.store.read_bytes(name) for name in names]
    _require_one_base(library, found)
    stored = [adapter for adapter, _ in found]
    factors = list(weights) if weights is not None else [1.0] * len(names)
    updates = [read_updates(adapter) for _, adapter in found]
    merged = merge_updates(updates, factors, method, rank=rank, density=density)
    largest = max(update.rank for update in merged.values())
    if largest > MAX_RANK:
        raise UsageError(f"The exact sum has rank {largest}, the limit is {MAX_RANK}. Use method='svd' with a rank.")
    preview = preview_merge(dict(zip(names, updates, strict=True)), factors)
    error = total_distance(exact_sum(weighted(updates, factors)), merged)
    report = MergeReport(method, largest, error, preview)
    folder = write_updates(run_dir / "merged", merged, library.entry.identity)
    manifest = _manifest_of_merge(library, stored, new_name, report, factors)
    return library.keep(folder, manifest, replace=replace), report


def _require_one_base(library: AdapterLibrary, found: Sequence[tuple[StoredAdapter, AdapterBytes]]) -> None:
    fingerprint = library.describe().fingerprint
    assert fingerprint is not None  # describing reads it
    for adapter, own in found:
        base = adapter.manifest.base
        problems = []
        if base is None or base.components != fingerprint.components:
            problems.append("it was trained on another base, or on an unknown one")
        if own.files.head:
            problems.append("it brings a head of its own; heads cannot be added up")
        if problems:
            raise IncompatibleAdapter(adapter.name, library.entry.name, problems)


def _manifest_of_merge(
    library: AdapterLibrary, stored: Sequence[StoredAdapter], name: str, report: MergeReport, weights: Sequence[float]
) -> Manifest:
    first = stored[0].manifest
    same = all((a.manifest.task, a.manifest.style) == (first.task, first.style) for a in stored)
    facts = {"method": report.method, "rank": report.rank, "error": report.error}
    return library.manifest(
        name,
        task=first.task if len({a.manifest.task for a in stored}) == 1 else "general",
        style=first.style if same else "+".join(a.manifest.style for a in stored),
        recipe="merged",
        prompt=first.prompt,
        trained=True,
        generation=first.generation,
        training={"data": "merged from " + ", ".join(a.name for a in stored), **facts},
        lineage=[
            Parent(a.name, a.manifest.digest, f"merge-{report.method}", {"weight": weight})
            for a, weight in zip(stored, weights, strict=True)
        ],
        licence="; ".join(dict.fromkeys(a.manifest.licence for a in stored if a.manifest.licence)),
    )
