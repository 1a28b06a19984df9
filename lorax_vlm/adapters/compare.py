"""What differs between two stored adapters, or two versions of one. No torch."""

import json
from dataclasses import dataclass
from typing import Any

from lorax_vlm.adapters.factors import read_updates, total_cosine, total_distance, total_norm
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore

_SHOWN = 8
_EQUAL = 1e-9
"""Relative distance that rounding makes between equal updates."""
_LEFT_OUT = ("files", "canary", "base", "metrics", "lineage", "versions")


@dataclass(frozen=True)
class AdapterDiff:
    """Two adapters side by side."""

    facts: list[tuple[str, str, str]]
    """What their manifests say differently: name of the fact, and both values."""
    shared: int
    """Sites that both have."""
    only_first: list[str]
    only_second: list[str]
    norms: tuple[float, float]
    """Of all updates together."""
    cosine: float
    """Of the updates at shared sites together."""
    distance: float
    """Norm of the difference of all updates, relative to the first's."""
    farthest: list[tuple[str, float, float]]
    """Shared sites with cosine and relative distance, the farthest apart first."""


def compare_adapters(store: AdapterStore, first: str, second: str) -> AdapterDiff:
    """Compare two adapters of a store.

    Raises:
        AdapterNotFound: There is no such adapter or version.
        AdapterError: One cannot be read.
    """
    (one, one_bytes), (other, other_bytes) = (store.read_bytes(name) for name in (first, second))
    mine, theirs = read_updates(one_bytes), read_updates(other_bytes)
    shared = [site for site in mine if site in theirs and mine[site].shape == theirs[site].shape]
    rows = [(site, mine[site].cosine(theirs[site]), mine[site].distance(theirs[site])) for site in shared]
    return AdapterDiff(
        facts=_facts(one.manifest, other.manifest),
        shared=len(shared),
        only_first=sorted(set(mine) - set(shared)),
        only_second=sorted(set(theirs) - set(shared)),
        norms=(total_norm(mine), total_norm(theirs)),
        cosine=total_cosine(mine, theirs, shared),
        distance=total_distance(mine, theirs),
        farthest=sorted((row for row in rows if row[2] > _EQUAL), key=lambda row: -row[2])[:_SHOWN],
    )


def _facts(first: Manifest, second: Manifest) -> list[tuple[str, str, str]]:
    mine, theirs = _flat(_described(first)), _flat(_described(second))
    keys = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    return [(key, _short(mine.get(key)), _short(theirs.get(key))) for key in keys]


def _described(manifest: Manifest) -> dict[str, Any]:
    facts = {k: v for k, v in manifest.record().items() if k not in _LEFT_OUT}
    base = manifest.base
    return facts | {"base": base.name if base else "unknown", "base weights": base.components if base else {}}


def _flat(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _short(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
