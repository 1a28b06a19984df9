"""What is in an adapter's file, whoever made it and whatever base it is for. No torch.

Nothing here needs the base: names and shapes say which it may be, and how large and how rich each update is follows
from its factors.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorax_vlm.adapters.factors import Update, read_factors
from lorax_vlm.adapters.files import only_our_errors
from lorax_vlm.adapters.pair import read_pair
from lorax_vlm.adapters.peft_config import (
    MAX_RANK,
    config_problems,
    read_settings,
    unsupported_features,
)
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import list_models
from lorax_vlm.models.components import component_of
from lorax_vlm.models.spec import ARCHITECTURES, Architecture

DEAD_SHARE = 1e-3
"""An update below this share of the median one's norm is called dead."""
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class SiteInspection:
    """One adapted module."""

    site: str
    component: str
    layer: int | None
    """The first number in its name."""
    role: str
    """The last part of its name, such as ``q_proj``."""
    rank: int
    shape: tuple[int, int]
    """``(D_out, D_in)``."""
    norm: float
    """Of the update, scaling included."""
    effective_rank: float
    rank_95: int
    """Singular values that hold 95 % of its squared norm."""
    dead: bool


@dataclass(frozen=True)
class Inspection:
    """What is in an adapter's file."""

    folder: Path
    size_bytes: int
    dtypes: tuple[str, ...]
    sites: tuple[SiteInspection, ...]
    others: tuple[str, ...]
    """Tensors that are no LoRA factors."""
    features: tuple[str, ...]
    """What of its configuration is not plain LoRA."""
    claimed_base: str
    """What its configuration calls its base; empty when it does not say."""
    likely_bases: tuple[str, ...]
    """Checkpoints of the catalogue whose names and shapes it fits."""

    @property
    def by_component(self) -> Mapping[str, Sequence[SiteInspection]]:
        """Sites by component."""
        found: dict[str, list[SiteInspection]] = {}
        for site in self.sites:
            found.setdefault(site.component, []).append(site)
        return found

    @property
    def dead(self) -> list[str]:
        """Sites whose update does nothing to speak of."""
        return [site.site for site in self.sites if site.dead]

    def share(self, component: str) -> float:
        """A component's share of the squared norm of all updates."""
        total = sum(site.norm**2 for site in self.sites)
        return sum(site.norm**2 for site in self.by_component[component]) / total if total else 0.0


def inspect_adapter(folder: Path) -> Inspection:
    """Look into a PEFT LoRA directory.

    Raises:
        DamagedAdapter: It has no readable configuration or weights, or no LoRA factors.
        UnsupportedAdapter: A pattern of its configuration is not run here.
    """
    with only_our_errors(folder.name, folder):
        return _inspect(folder)


def _inspect(folder: Path) -> Inspection:
    config, data, tensors = read_pair(folder)
    if odd := config_problems({"r": 1, "lora_alpha": 1, **config}, targets=False):
        raise DamagedAdapter(folder.name, str(folder), odd)
    pairs = read_factors(tensors)
    settings = read_settings(config)
    problems = [] if pairs else ["it holds no LoRA factors"]
    for site, (a, b) in pairs.items():
        if len(a) != b.shape[1] or not 1 <= len(a) <= MAX_RANK:
            problems.append(f"{quoted(site)}: A {a.shape} and B {b.shape} do not share a rank from 1 to {MAX_RANK}")
        elif not (np.isfinite(a).all() and np.isfinite(b).all()):
            problems.append(f"{quoted(site)}: its values are not all finite")
    if problems:
        raise DamagedAdapter(folder.name, str(folder), problems)
    updates = {site: Update(a, b * settings.scaling(site, len(a))) for site, (a, b) in pairs.items()}
    norms = {site: update.norm for site, update in updates.items()}
    typical = float(np.median(list(norms.values())))
    used = {f"base_model.model.{site}.lora_{factor}.weight" for site in pairs for factor in "AB"}
    shapes = {site: update.shape for site, update in updates.items()}
    return Inspection(
        folder=folder,
        size_bytes=len(data),
        dtypes=tuple(sorted({tensor.dtype for tensor in tensors})),
        sites=tuple(
            SiteInspection(
                site=site,
                component=component_of(site) or "other",
                layer=int(match[1]) if (match := _LAYER.search(site)) else None,
                role=site.rsplit(".", 1)[-1],
                rank=update.rank,
                shape=shapes[site],
                norm=norms[site],
                effective_rank=update.effective_rank,
                rank_95=update.rank_for(),
                dead=norms[site] <= DEAD_SHARE * typical,
            )
            for site, update in updates.items()
        ),
        others=tuple(sorted(tensor.name for tensor in tensors if tensor.name not in used)),
        features=tuple(unsupported_features(config)),
        claimed_base=str(config.get("base_model_name_or_path") or ""),
        likely_bases=tuple(_likely_bases(shapes)),
    )


def _likely_bases(shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Checkpoints whose family has all of the sites, and whose widths and numbers of layers agree."""
    found = []
    for entry in list_models():
        row = ARCHITECTURES[entry.family]
        patterns = [re.compile(pattern) for pattern in row.site_groups.values()]
        known = all(any(pattern.fullmatch(site) for pattern in patterns) for site in shapes)
        if known and all(_fits(site, shape, row, entry.sizes) for site, shape in shapes.items()):
            found.append(entry.name)
    return found


def _fits(site: str, shape: tuple[int, int], row: Architecture, sizes: Mapping[str, tuple[int, int]]) -> bool:
    width, layers = sizes.get(str(component_of(site)), (shape[1], 10**6))
    layer = _LAYER.search(site)
    return (not site.endswith(row.width_readers) or shape[1] == width) and (layer is None or int(layer[1]) < layers)
