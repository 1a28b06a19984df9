"""What moving an adapter to another base would take, decided before anything is loaded. Pure, printable, no torch.

Every component that the adapter changes is moved in its own way. Nothing is ever called transferred that carries no
weights derived from the source: a part that cannot be moved is dropped with its share of the update, or the whole is
refused.

No torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorax_vlm.adapters.compatibility import ComponentReport, Level, check_compatibility
from lorax_vlm.adapters.factors import read_updates, total_norm
from lorax_vlm.adapters.files import AdapterBytes, AdapterFiles, with_weights
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.asking import answers_questions
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.spec import ARCHITECTURES, chooses, site_groups
from lorax_vlm.types import percent, require_flag

Strategy = Literal["load", "copy", "distil", "drop"]
Label = Literal["exact", "component-copy", "approximate", "distilled", "distilled-mapped", "refused"]


@dataclass(frozen=True)
class PartPlan:
    """One component of the adapter."""

    component: str
    sites: tuple[str, ...]
    level: Level | None
    distance: float | None
    strategy: Strategy
    share: float
    """Of the squared norm of all updates."""
    reason: str


@dataclass(frozen=True)
class TransferPlan:
    """How an adapter gets to another base."""

    adapter: str
    source: str
    """Name of the base it was trained on; ``unknown`` without a manifest."""
    target: str
    label: Label
    """What the result may be called."""
    parts: tuple[PartPlan, ...]
    student_groups: tuple[str, ...]
    """Groups of sites on the target that distillation trains; empty where nothing is distilled."""
    rank: int
    reasons: tuple[str, ...]
    """Why it is refused, or what to know about it."""

    @property
    def refused(self) -> bool:
        """Whether there is no way."""
        return self.label == "refused"

    @property
    def needs_images(self) -> bool:
        """Whether unlabelled images are needed."""
        return any(part.strategy == "distil" for part in self.parts)

    @property
    def kept_share(self) -> float:
        """Share of the squared norm whose weights are taken over."""
        return sum(part.share for part in self.parts if part.strategy in ("load", "copy"))

    @property
    def copied_sites(self) -> tuple[str, ...]:
        """Sites whose weights are taken over."""
        return tuple(site for part in self.parts if part.strategy in ("load", "copy") for site in part.sites)

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.adapter}: {self.source} -> {self.target}: {self.label}"]
        for part in self.parts:
            level = str(part.level) if part.level is not None else "unknown"
            lines.append(
                f"  {part.component:<10} {level:<7} {part.strategy:<6} {percent(part.share):>7} of the update, "
                f"{len(part.sites)} sites: {part.reason}"
            )
        if self.student_groups:
            lines.append(f"  distilled into rank {self.rank} on {', '.join(self.student_groups)} of {self.target}")
        return [*lines, *(f"  {reason}" for reason in self.reasons)]


def plan_transfer(
    adapter: AdapterBytes | AdapterFiles,
    manifest: Manifest,
    target: BaseDescription,
    *,
    images: int = 0,
    allow_partial: bool = False,
) -> TransferPlan:
    """Decide how each part of an adapter gets to a base.

    Args:
        adapter: Its files; their weights are read again when they were let go.
        manifest: Of the adapter.
        target: The base.
        images: Unlabelled images at hand; without any, only weights can be taken over.
        allow_partial: Leave out what cannot be moved, instead of refusing.
    """
    require_flag("allow_partial", allow_partial)
    adapter = with_weights(adapter)
    files = adapter.files
    report = check_compatibility(files, manifest, target)
    updates = read_updates(adapter)
    whole = total_norm(updates) ** 2
    sites = group_by_component(files.sites)
    unteachable = why_not_distilled(files, manifest, target)
    parts = []
    for component in report.components:
        own = tuple(sites.get(component.component, ()))
        share = total_norm(updates, own) ** 2 / whole if whole else 0.0
        fits = report.verdict != "refused"
        same_base = fits and component.level is Level.IDENTICAL
        strategy, reason = _choose(component, same_base, unteachable, images)
        parts.append(PartPlan(component.component, own, component.level, component.distance, strategy, share, reason))
    groups = _student_groups(files.sites, manifest, target) if _any(parts, "distil") else ()
    source = manifest.base.name if manifest.base is not None else "unknown"
    label, reasons = _judge(parts, manifest, allow_partial)
    return TransferPlan(
        manifest.name, source, target.name, label, tuple(parts), groups, max(files.ranks, default=0), tuple(reasons)
    )


def why_not_distilled(files: AdapterFiles, manifest: Manifest, target: BaseDescription) -> str | None:
    """Why an adapter can teach nothing to ``target``, however many images there are; None when it can."""
    made_for = manifest.base
    if not manifest.trained:
        return "it was never trained: there is nothing to move"
    if made_for is None:
        return "nothing says which base it was trained on, so there is none to learn from"
    if chooses(target.family) and not chooses(made_for.family) and _writes(manifest):
        return f"it writes texts of its own, and {target.name} only chooses among fixed answers"
    if not _student_groups(files.sites, manifest, target):
        return f"none of its groups of sites exist in {target.family}"
    return None


def _writes(manifest: Manifest) -> bool:
    """Whether an adapter was trained for texts that no fixed answers stand for."""
    return manifest.skill.writes if manifest.skill is not None else not answers_questions(manifest)


def _choose(component: ComponentReport, same_base: bool, unteachable: str | None, images: int) -> tuple[Strategy, str]:
    if same_base:
        return "load", component.reason
    if component.level in (Level.SAME_COMPONENT, Level.CLOSE):
        return "copy", component.reason
    if component.level in (Level.SAME_INTERFACE, Level.OTHER_INTERFACE):
        if unteachable is not None:
            return "drop", f"{component.reason}; {unteachable}"
        if images:
            return "distil", component.reason
        return "drop", f"{component.reason}; without unlabelled images nothing of it can be moved"
    return "drop", component.reason


def _any(parts: Sequence[PartPlan], strategy: Strategy) -> bool:
    return any(part.strategy == strategy for part in parts)


def _student_groups(sites: Sequence[str], manifest: Manifest, target: BaseDescription) -> tuple[str, ...]:
    """The target's groups of sites that correspond to those the adapter changes."""
    family = manifest.base.family if manifest.base is not None else ""
    members = {
        group: {site for site in sites if re.fullmatch(pattern, site)} for group, pattern in site_groups(family).items()
    }
    found = [group for group, own in members.items() if own and group in site_groups(target.family)]
    if "lm-qv" in found:  # the narrower of the two
        found.remove("lm-attention" if members["lm-attention"] == members["lm-qv"] else "lm-qv")
    stand_in = ARCHITECTURES[target.family].image_path_stand_in
    if stand_in is not None and not any(group.startswith("lm-") for group in found):
        found.append(stand_in)
    return tuple(found)


def _judge(parts: Sequence[PartPlan], manifest: Manifest, allow_partial: bool) -> tuple[Label, list[str]]:
    dropped = [part for part in parts if part.strategy == "drop"]
    moved = [part for part in parts if part.strategy != "drop"]
    reasons = [f"{part.component} ({percent(part.share)} of the update) is left out: {part.reason}" for part in dropped]
    if not manifest.trained:
        return "refused", [*reasons, "it was never trained: there is nothing to move"]
    if moved and dropped and not allow_partial:
        return "refused", [*reasons, "allow_partial moves the rest"]
    if not moved:
        return "refused", reasons
    if _any(parts, "distil"):
        mapped = any(part.level is Level.OTHER_INTERFACE for part in parts)
        return ("distilled-mapped" if mapped else "distilled"), reasons
    loaded = all(part.strategy == "load" for part in parts)
    same = all(part.level is Level.SAME_COMPONENT for part in moved)
    return ("exact" if loaded else "component-copy" if same else "approximate"), reasons
