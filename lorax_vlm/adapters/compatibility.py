"""Does this adapter belong to this base, and if not, how far away is it? Answered before PEFT, which does not ask.

Left to itself PEFT loads an adapter of another model as a partial or empty one with a warning at most, never reports
surplus tensors, and says nothing at all about other weights of the same shapes.

Each component that an adapter changes has a level:

L0  every weight of the base, its configuration and its tokenizer are those the adapter was trained on
L1  the base's weights in the places it changes are the very same; others differ
L2  same places and shapes, weights close by: of one lineage
L3  other weights or shapes, or places that do not exist, on a base that writes text all the same
L4  one base writes text, the other chooses among answers
L5  it cannot be moved at all

Unknown is never taken for yes: without fingerprints there is no level, and an adapter is "unverified" at best.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from lorax_vlm.adapters.files import HEAD, AdapterFiles
from lorax_vlm.adapters.manifest import BaseIdentity, Manifest
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.description import BaseDescription

Verdict = Literal["exact", "unverified", "refused"]
CLOSE_DISTANCE = 0.15
"""Relative distance of weights up to which bases count as of one lineage; see ``docs/transfer.md``."""


class Level(IntEnum):
    """How far a base is from the one an adapter was trained on; smaller is closer."""

    IDENTICAL = 0
    SAME_COMPONENT = 1
    CLOSE = 2
    SAME_INTERFACE = 3
    OTHER_INTERFACE = 4
    REFUSED = 5

    def __str__(self) -> str:
        return f"L{self.value}"


@dataclass(frozen=True)
class ComponentReport:
    """One component that the adapter changes."""

    component: str
    sites: int
    level: Level | None
    """None: unknown."""
    distance: float | None
    """Estimate of ``|W - W'| / |W|`` over the adapted weights, None where it is unknown or makes no sense."""
    reason: str


@dataclass(frozen=True)
class CompatibilityReport:
    """``exact``: same base. ``unverified``: it fits, but nothing says it was trained on these weights."""

    verdict: Verdict
    reasons: tuple[str, ...]
    components: tuple[ComponentReport, ...] = ()

    @property
    def level(self) -> Level | None:
        """The farthest component's; None when any is unknown."""
        levels = [part.level for part in self.components]
        return max(levels) if levels and None not in levels else None  # type: ignore[type-var]


def check_compatibility(files: AdapterFiles, manifest: Manifest, base: BaseDescription) -> CompatibilityReport:
    """Compare an adapter with a base: sites, shapes, and, where they are known, the very weights."""
    mismatches = [
        *_site_mismatches(files, base),
        *_shape_mismatches(files, base),
        *_head_mismatches(files, manifest.labels, base),
    ]
    made_for = manifest.base
    components = tuple(_compare_components(files, made_for, base))
    if made_for is None:
        reasons = ("it has no manifest, so nothing says which weights it was trained on",)
        return CompatibilityReport("refused" if mismatches else "unverified", (*mismatches,) or reasons, components)
    others = _configuration_mismatches(made_for, base)
    if others:
        mismatches.insert(0, f"base: trained on {made_for.name}; {'; '.join(others[:3])}")
    if base.fingerprint is None:
        if mismatches:
            return CompatibilityReport("refused", tuple(mismatches), components)
        reason = (
            f"the weights of {base.name} were never read, so whether they are those of {made_for.name} is unknown: "
            f"lorax-vlm models fingerprint {base.name}"
        )
        return CompatibilityReport("unverified", (reason,), components)
    known = base.fingerprint.components
    for component, digest in made_for.components.items():
        if known.get(component) != digest:
            mismatches.append(f"{component}: other weights than those of {made_for.name} it was trained on")
    unknown = []
    for what, trained_with, here in _preparations(made_for, base):
        if trained_with is None or here is None:
            unknown.append(f"{what}: whether it is that of {made_for.name} is unknown")
        elif trained_with != here:
            mismatches.append(f"{what}: another one than that of {made_for.name}")
    verdict: Verdict = "refused" if mismatches else "unverified" if unknown else "exact"
    return CompatibilityReport(verdict, (*mismatches, *unknown), components)


_Finding = tuple[Level | None, float | None, str]
"""Level, distance and reason."""


def _compare_components(
    files: AdapterFiles, made_for: BaseIdentity | None, base: BaseDescription
) -> Iterator[ComponentReport]:
    sites = group_by_component(files.sites)
    if files.head:
        sites["head"] = []
    for component, own in sites.items():
        found = _compare_structure(own, files, made_for, base) or _compare_weights(component, own, made_for, base)
        yield ComponentReport(component, len(own), *found)


def _compare_structure(
    sites: Sequence[str], files: AdapterFiles, made_for: BaseIdentity | None, base: BaseDescription
) -> _Finding | None:
    """Why an adapter cannot even be put on a base; None when it can."""
    if made_for is not None and (made_for.family == "vilt") is not (base.family == "vilt"):
        does = "chooses among answers" if base.family == "vilt" else "writes its answers"
        return Level.OTHER_INTERFACE, None, f"{base.name} {does}"
    missing = [site for site in sites if site not in base.linear_shapes]
    if missing:
        return Level.SAME_INTERFACE, None, f"{len(missing)} of {len(sites)} sites do not exist there"
    other = [site for site in sites if base.linear_shapes[site] != files.shape(site)]
    if other:
        return Level.SAME_INTERFACE, None, f"{len(other)} of {len(sites)} sites have other shapes there"
    return None


def _compare_weights(
    component: str, sites: Sequence[str], made_for: BaseIdentity | None, base: BaseDescription
) -> _Finding:
    if made_for is None or base.fingerprint is None:
        unknown = "which it was trained on" if made_for is None else f"those of {base.name} were never read"
        return None, None, f"same sites and shapes; the weights are unknown: {unknown}"
    if _is_identical(made_for, base):
        return Level.IDENTICAL, 0.0, "the very same base"
    names = [f"{site}.weight" for site in sites]
    trained_on = made_for.adapted.get(component)
    if trained_on is None or any(name not in base.fingerprint.tensors for name in names):
        what = "a head belongs to the whole of its base" if component == "head" else "their weights cannot be compared"
        return Level.REFUSED if component == "head" else None, None, what
    if base.fingerprint.digest_of(names) == trained_on.digest:
        return Level.SAME_COMPONENT, 0.0, "the adapted weights are the very same; others differ"
    distance = trained_on.as_sketch().distance(base.fingerprint.sketch_of(names))
    level = Level.CLOSE if distance <= CLOSE_DISTANCE else Level.SAME_INTERFACE
    return level, distance, f"the adapted weights differ by about {distance:.2f} of their norm"


def _is_identical(made_for: BaseIdentity, base: BaseDescription) -> bool:
    """Every weight, every setting that both know, and a tokenizer and an image processor that are known to be equal."""
    return (
        base.fingerprint is not None
        and base.fingerprint.components == made_for.components
        and not _configuration_mismatches(made_for, base)
        and all(mine == theirs and mine is not None for _, mine, theirs in _preparations(made_for, base))
    )


def _preparations(made_for: BaseIdentity, base: BaseDescription) -> list[tuple[str, str | None, str | None]]:
    """What turns text and images into tensors, there and here."""
    return [
        ("tokenizer", made_for.tokenizer, base.tokenizer),
        ("image processor", made_for.processor, base.processor),
    ]


def _configuration_mismatches(made_for: BaseIdentity, base: BaseDescription) -> list[str]:
    """Settings that both configurations name and that differ; what only one names is a default."""
    return [
        f"{key} is {base.configuration[key]}, there {value}"
        for key, value in made_for.configuration.items()
        if key in base.configuration and base.configuration[key] != value
    ]


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
        if files.shape(site) != (width_out, width_in):
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
