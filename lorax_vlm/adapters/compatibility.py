"""Does this adapter belong to this base? Answered before PEFT sees it, because PEFT does not ask.

Left to itself PEFT loads an adapter of another model as a partial or empty one with a warning at most, never reports
surplus tensors, and says nothing at all about other weights of the same shapes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorax_vlm.adapters.files import HEAD, AdapterFiles
from lorax_vlm.adapters.manifest import Manifest

Verdict = Literal["exact", "unverified", "refused"]


@dataclass(frozen=True)
class BaseDescription:
    """What must be known of a base: the linear layers' names and ``(D_out, D_in)``, and its identity."""

    name: str
    linear_shapes: Mapping[str, tuple[int, int]]
    architecture: str
    fingerprint: Mapping[str, str]
    head_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Tensors of a head over fixed answers, such as ``classifier.3.weight``; empty without one."""


@dataclass(frozen=True)
class CompatibilityReport:
    """``exact``: same base. ``unverified``: it fits, but nothing says it was trained on these weights."""

    verdict: Verdict
    reasons: tuple[str, ...]


def check_compatibility(files: AdapterFiles, manifest: Manifest, base: BaseDescription) -> CompatibilityReport:
    """Compare an adapter with a base: sites, shapes, and, where the manifest knows them, the very weights."""
    mismatches = [
        *_site_mismatches(files, base),
        *_shape_mismatches(files, base),
        *_head_mismatches(files, manifest.labels, base),
    ]
    if manifest.base is None:
        reasons = ("it has no manifest, so nothing says which weights it was trained on",)
        return (
            CompatibilityReport("refused", tuple(mismatches))
            if mismatches
            else CompatibilityReport("unverified", reasons)
        )
    if manifest.base.architecture != base.architecture:
        mismatches.insert(0, f"base: trained on {manifest.base.name}, whose configuration differs")
    for component, digest in manifest.base.fingerprint.items():
        if base.fingerprint.get(component) != digest:
            mismatches.append(f"{component}: other weights than those of {manifest.base.name} it was trained on")
    return CompatibilityReport("refused" if mismatches else "exact", tuple(mismatches))


def _site_mismatches(files: AdapterFiles, base: BaseDescription) -> list[str]:
    expected = {name for name in base.linear_shapes if targets_module(files.config, name)}
    mismatches = [
        f"{site}: in the adapter, but no linear layer of this base"
        for site in files.sites
        if site not in base.linear_shapes
    ]
    surplus = [site for site in files.sites if site in base.linear_shapes and site not in expected]
    mismatches += [f"{site}: in the adapter, but not named by its target_modules" for site in surplus]
    # PEFT would create these sites with B = 0: present in name, without effect.
    mismatches += [
        f"{site}: named by its target_modules, but not in the adapter" for site in sorted(expected - set(files.sites))
    ]
    return mismatches


def _shape_mismatches(files: AdapterFiles, base: BaseDescription) -> list[str]:
    mismatches = []
    for site, (a, b) in files.factors.items():
        if site not in base.linear_shapes:
            continue
        width_out, width_in = base.linear_shapes[site]
        if (b.shape[0], a.shape[1]) != (width_out, width_in):
            turned = " (its factors look transposed)" if (b.shape[1], a.shape[0]) == (width_out, width_in) else ""
            mismatches.append(f"{site}: adapter {a.shape[1]} -> {b.shape[0]}, base {width_in} -> {width_out}{turned}")
    return mismatches


def _head_mismatches(files: AdapterFiles, labels: Sequence[str], base: BaseDescription) -> list[str]:
    """A head must fit the base's width, and one answer must be known for each of its outputs."""
    if not files.head:
        return [f"its manifest names {len(labels)} answers, but it has no head for them"] if labels else []
    if not base.head_shapes:
        return ["it brings a head over fixed answers; this base writes its answers"]
    last = max(int(name.split(".")[1]) for name in base.head_shapes)
    of_last = f"{HEAD}.{last}."
    outputs = next((factor.shape[0] for name, factor in files.head.items() if name.startswith(of_last)), 0)
    mismatches = []
    for name in sorted({*files.head, *base.head_shapes}):
        if name not in files.head or name not in base.head_shapes:
            mismatches.append(f"{name}: only in the {'adapter' if name in files.head else 'base'}")
            continue
        expected = base.head_shapes[name]
        if name.startswith(of_last):
            expected = (outputs, *expected[1:])
        if files.head[name].shape != expected:
            mismatches.append(f"{name}: adapter {files.head[name].shape}, base {expected}")
    if len(labels) != outputs:
        known = f"{len(labels)} answers" if labels else "no answers"
        mismatches.append(f"its head has {outputs} outputs, its manifest names {known} for them")
    return mismatches


def targets_module(config: Mapping[str, Any], name: str) -> bool:
    """Whether a PEFT configuration selects a module; the rules are PEFT's ``check_target_module_exists``."""
    if _names(config.get("exclude_modules"), name):
        return False
    targets = config["target_modules"]
    if not _names(targets, name):
        return False
    indexes = config.get("layers_to_transform")
    if isinstance(targets, str) or name in targets or indexes in (None, []):
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name)
        if match:
            return int(match[1]) in ([indexes] if isinstance(indexes, int) else indexes)
    return False


def _names(selector: str | list[str] | None, name: str) -> bool:
    if not selector:
        return False
    if isinstance(selector, str):
        return re.fullmatch(selector, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in selector)
