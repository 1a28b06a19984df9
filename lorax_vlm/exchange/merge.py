"""Several adapters of one base as one.

``cat`` is exact: the updates are put side by side, the ranks add up, and the result is the weighted sum, no more and
no less. ``svd`` brings that sum back to a rank and says what is lost. ``linear``, ``ties`` and ``dare`` are PEFT's, on
whole updates: its plain versions combine A and B apart, which adds products of one adapter's A with another's B.
"""

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack, get_args

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorax_vlm.adapters.compatibility import check_compatibility
from lorax_vlm.adapters.durable import run_folder
from lorax_vlm.adapters.factors import Update, Updates, read_updates, total_distance
from lorax_vlm.adapters.files import AdapterBytes
from lorax_vlm.adapters.manifest import Manifest, Parent
from lorax_vlm.adapters.ownership import require_storable
from lorax_vlm.adapters.peft_config import MAX_RANK
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import answers_questions
from lorax_vlm.errors import IncompatibleAdapter, UsageError
from lorax_vlm.evaluation.seen import Heritage
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.exchange.merge_preview import MergePreview, exact_sum, preview_merge, weighted
from lorax_vlm.foreign import quoted
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import Skill
from lorax_vlm.types import require_known, require_texts
from lorax_vlm.workshop.intake import keep, made_on

logger = logging.getLogger(__name__)
Method = Literal["cat", "svd", "linear", "ties", "dare"]
METHODS: tuple[Method, ...] = get_args(Method)
_OF_PEFT = {"linear": "svd", "ties": "ties_svd", "dare": "dare_linear_svd"}
LARGEST_WEIGHT = 1e6


@dataclass(frozen=True)
class MergeReport:
    """What merging did."""

    method: Method
    rank: int
    error: float
    """Distance to the exact weighted sum, relative to its norm; ``ties`` and ``dare`` drop something on purpose."""
    preview: MergePreview


def preview_stored(
    store: AdapterStore, names: Sequence[str], weights: Sequence[float] | None, method: Method, rank: int | None
) -> MergePreview:
    """What merging stored adapters would combine; of their bases only what their records say is looked at.

    Raises:
        UsageError: As ``merge_adapters``; or they are of different bases, or do not say of which.
        AdapterError: One cannot be read.
    """
    factors = [1.0] * len(names) if weights is None else list(weights)
    _require_request(names, factors, method, rank)
    found = [store.read_bytes(name) for name in names]
    require_different([stored for stored, _ in found])
    bases = {
        (base.name, *sorted(base.components.items())) if (base := stored.manifest.base) is not None else None
        for stored, _ in found
    }
    if len(bases) > 1 or None in bases:
        said = ", ".join(
            f"{s.reference} of {s.manifest.base.name if s.manifest.base else 'an unknown base'}" for s, _ in found
        )
        raise UsageError(f"Only adapters of the same weights can be merged, and these are {said}.")
    return preview_merge({stored.reference: read_updates(adapter) for stored, adapter in found}, factors)


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
        UsageError: See ``require_mergeable``.
    """
    require_mergeable(len(adapters), weights, method, rank, density)
    kept = rank or max(update.rank for updates in adapters for update in updates.values())
    if method in ("cat", "svd"):
        summed = exact_sum(weighted(adapters, weights))
        return summed if method == "cat" else {site: update.truncated(kept) for site, update in summed.items()}
    sites = sorted({site for updates in adapters for site in updates})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {site: _merge_by_peft(site, adapters, weights, method, kept, density) for site in sites}


def require_mergeable(
    count: int, weights: Sequence[float], method: Method, rank: int | None = None, density: float = 0.5
) -> None:
    """Check what is asked for, before anything is read.

    Args:
        count: Of adapters.
        weights: One per adapter.
        method: One of ``METHODS``.
        rank: Most ranks per site.
        density: Share of the values that are kept.

    Raises:
        UsageError: The method is unknown, the weights are not one finite number per adapter or all 0, or rank or
            density are no such numbers.
    """
    if method not in METHODS:
        raise UsageError(f"Unknown method {quoted(method)}. Known: {', '.join(METHODS)}.")
    if len(weights) != count or not count:
        raise UsageError(f"One weight per adapter is needed, got {len(weights)} for {count}.")
    odd = [weight for weight in weights if not _is_number(weight) or not abs(weight) <= LARGEST_WEIGHT]
    if odd or not any(weights):
        what = f"{quoted(odd[0])} is none" if odd else "all are 0"
        raise UsageError(f"Weights are numbers from -{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}, not all 0: {what}.")
    if rank is not None and not (type(rank) is int and 1 <= rank <= MAX_RANK):
        raise UsageError(f"rank is {quoted(rank)}, expected a whole number from 1 to {MAX_RANK}.")
    if not _is_number(density) or not 0 < density <= 1:
        raise UsageError(f"density is {quoted(density)}, expected a number above 0 and at most 1.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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


class MergeWishes(TypedDict, total=False):
    """How adapters are merged."""

    weights: Sequence[float] | None
    """One per adapter. None: 1 each, the sum."""
    method: Method
    """One of ``METHODS``; by default ``cat``."""
    rank: int | None
    """As for ``merge_updates``."""
    density: float
    """As for ``merge_updates``; by default 0.5."""


def merge_adapters(
    bases: Bases,
    model: str,
    names: Sequence[str],
    new_name: str,
    *,
    run_dir: Path,
    replace: bool = False,
    **wishes: Unpack[MergeWishes],
) -> tuple[StoredAdapter, MergeReport]:
    """Merge adapters of one base and store the result.

    Args:
        bases: The door to their base.
        model: Their base.
        names: Two or more adapters.
        new_name: For the result.
        run_dir: Below it a folder is made, and removed again, for the files before they are stored.
        replace: Make a new version when ``new_name`` exists.
        wishes: How; see ``MergeWishes``.

    Raises:
        UsageError: Fewer than two adapters, one twice, or the exact sum's rank is above the limit; see
            ``require_mergeable`` for the others.
        IncompatibleAdapter: They are not all plain adapters of this very base.
        AdapterExists: ``new_name`` is taken.
        PathError: The store cannot be written.
    """
    require_known(wishes, MergeWishes.__annotations__)
    method, rank, density = wishes.get("method", "cat"), wishes.get("rank"), wishes.get("density", 0.5)
    factors = _weights_of(names, wishes.get("weights"))
    _require_request(names, factors, method, rank, density)
    require_storable(bases.store, bases.owner(model), new_name, replace=replace)
    found = [bases.store.read_bytes(name) for name in names]
    stored = [adapter for adapter, _ in found]
    require_different(stored)
    _require_one_base(bases.describe(model, fetch=True), found)
    updates = [read_updates(adapter) for _, adapter in found]
    if len({answers_questions(adapter.manifest) for adapter in stored}) > 1:
        logger.warning(
            "Of %s some caption and some answer questions: what is left of either is known when it is measured, "
            "lorax-vlm evaluate %s",
            ", ".join(names),
            new_name,
        )
    merged = merge_updates(updates, factors, method, rank=rank, density=density)
    largest = max(update.rank for update in merged.values())
    if largest > MAX_RANK:
        raise UsageError(f"The exact sum has rank {largest}, the limit is {MAX_RANK}. Use method='svd' with a rank.")
    preview = preview_merge(dict(zip([one.reference for one in stored], updates, strict=True)), factors)
    error = total_distance(exact_sum(weighted(updates, factors)), merged)
    report = MergeReport(method, largest, error, preview)
    heritage = Heritage.joined([Heritage.of(one.manifest, adapter.seen) for one, adapter in found])
    with bases.use(model) as engine, run_folder(run_dir) as scratch:
        manifest = _manifest_of_merge(engine, stored, new_name, report, factors, heritage)
        folder = write_updates(scratch / "merged", merged, engine.entry.identity, heritage.images)
        return keep(engine, folder, manifest, replace=replace), report


def _weights_of(names: Sequence[str], weights: object) -> list[float]:
    require_texts("names", names)
    if weights is None:
        return [1.0] * len(names)
    if isinstance(weights, str | bytes) or not isinstance(weights, Iterable):
        raise UsageError(f"weights must be numbers, one per adapter, got {quoted(weights)}.")
    return list(weights)


def _require_request(
    names: Sequence[str], weights: Sequence[float], method: Method, rank: int | None, density: float = 0.5
) -> None:
    if len(names) < 2:
        raise UsageError(f"Merging needs at least two adapters, got {list(names)}.")
    require_mergeable(len(names), weights, method, rank, density)
    if rank is not None and method == "cat":
        raise UsageError("cat keeps the exact sum, so it takes no rank. Use method svd for one.")


def require_different(adapters: Sequence[StoredAdapter]) -> None:
    """Raise ``UsageError`` when an adapter is among some twice, perhaps under two names."""
    known: dict[str, StoredAdapter] = {}
    for adapter in adapters:
        other = known.setdefault(adapter.digest, adapter)
        if other is not adapter:
            names = " and ".join(dict.fromkeys((other.reference, adapter.reference)))
            raise UsageError(f"{names} is the same adapter twice; name it once and give it twice the weight.")


def _require_one_base(described: BaseDescription, found: Sequence[tuple[StoredAdapter, AdapterBytes]]) -> None:
    fingerprint = described.fingerprint
    assert fingerprint is not None  # describing reads it
    for adapter, own in found:
        base = adapter.manifest.base
        problems = []
        if base is None or base.components != fingerprint.components:
            problems.append("it was trained on another base, or on an unknown one")
        else:
            report = check_compatibility(own.files, adapter.manifest, described)
            problems += report.reasons if report.verdict == "refused" else ()
        if own.files.head:
            problems.append("it brings a head of its own; heads cannot be added up")
        if problems:
            raise IncompatibleAdapter(adapter.name, described.name, problems)


def _skill_of_merge(manifests: Sequence[Manifest]) -> Skill | None:
    """That of all, or several of one mode; of several modes the first counts, whose prompt it is asked with."""
    skills = [manifest.skill for manifest in manifests]
    first = skills[0]
    if first is None or len(set(skills)) == 1:
        return first
    return Skill(first.mode, "+".join(skill.name for skill in skills if skill is not None))


def _manifest_of_merge(
    engine: BaseEngine,
    stored: Sequence[StoredAdapter],
    name: str,
    report: MergeReport,
    weights: Sequence[float],
    heritage: Heritage,
) -> Manifest:
    first = stored[0].manifest
    facts = {"method": report.method, "rank": report.rank, "error": report.error}
    manifest = Manifest(
        name=name,
        base=None,
        skill=_skill_of_merge([adapter.manifest for adapter in stored]),
        recipe="merged",
        prompt=first.prompt,
        trained=True,
        generation=first.generation,
        training={
            "data": "merged from " + ", ".join(a.reference for a in stored),
            **heritage.facts(),
            **facts,
        },
        lineage=tuple(
            Parent(a.name, a.digest, f"merge-{report.method}", {"weight": weight})
            for a, weight in zip(stored, weights, strict=True)
        ),
        licence="; ".join(dict.fromkeys(a.manifest.licence for a in stored if a.manifest.licence)),
    )
    return made_on(engine, manifest)
