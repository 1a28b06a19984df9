"""Updates to try on a target base without training anything, and the controls they must beat. No torch."""

from collections.abc import Sequence

import numpy as np

from lorax_vlm.adapters.factors import Update, Updates

ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5)
"""Multiples of the source's updates that are tried where weights are close but not the same."""


def copies(updates: Updates, sites: Sequence[str], *, same_weights: bool) -> dict[str, Updates]:
    """The source's own updates at the sites that can be taken over, at full size or at several.

    Args:
        updates: Of the source.
        sites: To take over.
        same_weights: The base's weights at these sites are the very same, so their size is right.
    """
    chosen = {site: updates[site] for site in sites}
    sizes = (1.0,) if same_weights else ALPHAS
    return {
        f"copy x {size:g}" if size != 1 else "copy": {site: u * size for site, u in chosen.items()} for size in sizes
    }


def random_like(updates: Updates, seed: int = 0) -> Updates:
    """Random updates of the very same singular values: what an adapter does that carries nothing of the source."""
    rng = np.random.default_rng(seed)
    made = {}
    for site, update in sorted(updates.items()):
        values = update.singular_values
        left = np.linalg.qr(rng.standard_normal((update.shape[0], len(values)))).Q
        right = np.linalg.qr(rng.standard_normal((update.shape[1], len(values)))).Q
        made[site] = Update.of_singular(left, values, right.T)
    return made


def shuffled_layers(updates: Updates, seed: int = 0) -> Updates:
    """The same updates, each at the place of another one of its shape; alone of its shape, it stays."""
    rng = np.random.default_rng(seed)
    by_shape: dict[tuple[int, int], list[str]] = {}
    for site, update in sorted(updates.items()):
        by_shape.setdefault(update.shape, []).append(site)
    moved: dict[str, Update] = {}
    for sites in by_shape.values():
        turn = int(rng.integers(1, len(sites))) if len(sites) > 1 else 0
        moved |= {site: updates[sites[(index + turn) % len(sites)]] for index, site in enumerate(sites)}
    return moved
