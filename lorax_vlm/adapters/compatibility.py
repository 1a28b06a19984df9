"""Does this adapter belong to this base, and if not, how far away is it? Answered before PEFT, which does not ask.

Left to itself PEFT loads an adapter of another model as a partial or empty one with a warning at most, never reports
surplus tensors, and says nothing at all about other weights of the same shapes.

Each component that an adapter changes has a level:

L0  every weight of the base, its configuration and its preparation of text and images are those the adapter was
    trained on
L1  the base's weights in the places it changes are the very same; other things are not, or are not known
L2  same places and shapes, weights close by: of one lineage
L3  other weights or shapes, or places that do not exist, on a base that writes text all the same
L4  one base writes text, the other chooses among answers
L5  it cannot be moved at all

Unknown is never taken for yes: without fingerprints there is no level, and an adapter is "unverified" at best. It is
"exact" on a base only if all that may change an answer is named by both and equal.

No torch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from lorax_vlm.adapters.files import AdapterFiles
from lorax_vlm.adapters.manifest import BaseIdentity, Manifest
from lorax_vlm.adapters.prefixed import missing_prefix
from lorax_vlm.foreign import quoted
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.spec import HEAD, chooses

Verdict = Literal["exact", "unverified", "refused"]
_SHOWN = 3
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
    """Compare an adapter with a base: sites, shapes, and, where they are known, the very weights and settings."""
    mismatches = [
        *_site_mismatches(files, base),
        *_shape_mismatches(files, base),
        *_head_mismatches(files, manifest.labels, base),
    ]
    made_for = manifest.base
    found = compare_bases(made_for, base) if made_for is not None else None
    components = tuple(_compare_components(files, made_for, base, found))
    if found is None:
        reasons = ("it has no manifest, so nothing says which weights it was trained on",)
        return CompatibilityReport("refused" if mismatches else "unverified", (*mismatches,) or reasons, components)
    mismatches = [*found.other_settings[:1], *mismatches, *found.other_settings[1:], *found.other_weights]
    unknown = [*found.unknown, *found.precision]
    if not mismatches and not unknown and any(part.level is not Level.IDENTICAL for part in components):
        unknown.append("whether it changes the very weights it was trained on is unknown")
    verdict: Verdict = "refused" if mismatches else "unverified" if unknown else "exact"
    return CompatibilityReport(verdict, tuple(mismatches or unknown), components)


@dataclass(frozen=True)
class BaseComparison:
    """What is known of two bases side by side, as readable lines."""

    other_settings: tuple[str, ...]
    """Configuration, tokenizer and image processor: what both name and say differently."""
    other_weights: tuple[str, ...]
    """Components whose weights both know, and that differ."""
    unknown: tuple[str, ...]
    """What only one of them knows."""
    precision: tuple[str, ...]
    """What they do differently in use."""

    @property
    def same_base(self) -> bool:
        """Whether all that may change an answer, but for the precision in use, is known of both and equal."""
        return not (self.other_settings or self.other_weights or self.unknown)


def compare_bases(made_for: BaseIdentity, base: BaseDescription) -> BaseComparison:
    """Compare the base that a manifest names with one that is here."""
    settings, unknown = _compare_settings(made_for, base)
    name = _shown(made_for.name)
    weights: list[str] = []
    if base.fingerprint is None:
        unknown.insert(
            0,
            f"the weights of {base.name} were never read, so whether they are those of {name} is unknown: "
            f"lorax-vlm models fingerprint {base.name}",
        )
    else:
        here = base.fingerprint.components
        for component in (*made_for.components, *(c for c in here if c not in made_for.components)):
            if component not in made_for.components:
                unknown.append(f"{_shown(component)}: whether its weights are those of {name} is unknown")
            elif here.get(component) != made_for.components[component]:
                weights.append(f"{_shown(component)}: other weights than those of {name} it was trained on")
    return BaseComparison(tuple(settings), tuple(weights), tuple(unknown), tuple(_compare_precision(made_for, base)))


def _compare_settings(made_for: BaseIdentity, base: BaseDescription) -> tuple[list[str], list[str]]:
    """What differs, and what is unknown, of configuration and preparation."""
    name = _shown(made_for.name)
    differ = [
        f"{_shown(key)}: {_shown(value)} there, {_shown(base.configuration[key])} here{_way_out(key, value)}"
        for key, value in _differing(made_for, base)
    ]
    if made_for.family != base.family:
        differ.insert(0, f"family: {_shown(made_for.family)} there, {base.family} here")
    lines = [f"base: trained on {name}, this is {base.name}; {'; '.join(differ[:_SHOWN])}"] if differ else []
    if made_for.preparation is None:
        old = [
            ("tokenizer", made_for.tokenizer, base.tokenizer),
            ("image processor", made_for.processor, base.processor),
        ]
        lines += [f"{what}: another one than that of {name}" for what, t, h in old if t and h and t != h]
        return lines, [f"recorded by an older version, which did not record all settings of {name}"]
    lines += [
        f"{_shown(file)}: another one than that of {name}"
        for file, digest in made_for.preparation.items()
        if base.preparation.get(file, digest) != digest
    ]
    only = [*set(made_for.configuration) ^ set(base.configuration), *set(made_for.preparation) ^ set(base.preparation)]
    unknown = (
        [f"{', '.join(map(_shown, sorted(only)[:_SHOWN]))}: named by only one of {name} and {base.name}"]
        if only
        else []
    )
    if not made_for.preparation or not made_for.configuration:
        unknown.append(f"nothing is recorded of how {name} prepares text and images")
    return lines, unknown


def _differing(made_for: BaseIdentity, base: BaseDescription) -> Iterator[tuple[str, Any]]:
    for key, value in made_for.configuration.items():
        if key not in base.configuration:
            continue
        here = base.configuration[key]
        if type(here) is not type(value) or here != value:
            yield key, value
        elif isinstance(value, list | dict) and json.dumps(here, sort_keys=True) != json.dumps(value, sort_keys=True):
            yield key, value  # true within it is not 1


def _way_out(key: str, value: Any) -> str:
    return f" (load it with --image-tokens {_shown(value)})" if key == "image_tokens" else ""


def _shown(value: Any) -> str:
    return quoted(value)[1:-1] if isinstance(value, str) else quoted(str(value))[1:-1]


def _compare_precision(made_for: BaseIdentity, base: BaseDescription) -> list[str]:
    """How the base computes here, and how it did when the adapter was trained."""
    there, here = (made_for.dtype, made_for.quantization), (base.dtype, base.quantization)
    if there == here:
        return []
    return [f"trained on a base {_computing(*there)}; here it is {_computing(*here)}"]


def _computing(dtype: str | None, quantization: str | None) -> str:
    if dtype is None or quantization is None:
        return "not loaded yet, so its precision is not known"
    return f"in {_shown(dtype)}" + (f", quantised to {_shown(quantization)}" if quantization != "none" else "")


_Finding = tuple[Level | None, float | None, str]
"""Level, distance and reason."""


def _compare_components(
    files: AdapterFiles, made_for: BaseIdentity | None, base: BaseDescription, bases: BaseComparison | None
) -> Iterator[ComponentReport]:
    sites = group_by_component(files.sites)
    if files.head:
        sites["head"] = []
    for component, own in sites.items():
        found = _compare_structure(own, files, made_for, base) or _compare_weights(
            component, own, made_for, base, bases
        )
        yield ComponentReport(component, len(own), *found)


def _compare_structure(
    sites: Sequence[str], files: AdapterFiles, made_for: BaseIdentity | None, base: BaseDescription
) -> _Finding | None:
    """Why an adapter cannot even be put on a base; None when it can."""
    if made_for is not None and chooses(made_for.family) is not chooses(base.family):
        does = "chooses among answers" if chooses(base.family) else "writes its answers"
        return Level.OTHER_INTERFACE, None, f"{base.name} {does}"
    missing = [site for site in sites if site not in base.linear_shapes]
    if missing:
        return Level.SAME_INTERFACE, None, f"{len(missing)} of {len(sites)} sites do not exist there"
    other = [site for site in sites if base.linear_shapes[site] != files.shape(site)]
    if other:
        return Level.SAME_INTERFACE, None, f"{len(other)} of {len(sites)} sites have other shapes there"
    return None


def _compare_weights(
    component: str,
    sites: Sequence[str],
    made_for: BaseIdentity | None,
    base: BaseDescription,
    bases: BaseComparison | None,
) -> _Finding:
    if made_for is None or bases is None or base.fingerprint is None:
        unknown = (
            "nothing says which base it was trained on" if made_for is None else f"those of {base.name} were never read"
        )
        return None, None, f"same sites and shapes; the weights are unknown: {unknown}"
    if bases.same_base:
        return Level.IDENTICAL, 0.0, "the very same base"
    names = [f"{site}.weight" for site in sites]
    trained_on = made_for.adapted.get(component)
    if trained_on is None or any(name not in base.fingerprint.tensors for name in names):
        what = "a head belongs to the whole of its base" if component == "head" else "their weights cannot be compared"
        return Level.REFUSED if component == "head" else None, None, what
    if base.fingerprint.digest_of(names) == trained_on.digest:
        return (
            Level.SAME_COMPONENT,
            0.0,
            "the adapted weights are the very same; other things are not, or are not known",
        )
    distance = trained_on.as_sketch().distance(base.fingerprint.sketch_of(names))
    level = Level.CLOSE if distance <= CLOSE_DISTANCE else Level.SAME_INTERFACE
    return level, distance, f"the adapted weights differ by about {distance:.2f} of their norm"


def _site_mismatches(files: AdapterFiles, base: BaseDescription) -> list[str]:
    prefix = missing_prefix(files.sites, base.linear_shapes)
    if prefix is not None:
        return [
            f"its {len(files.sites)} sites exist in this base with {prefix!r} before their names: LoRA was put on that "
            f"part alone. Load it with prefix={prefix!r}, or --prefix {prefix}"
        ]
    expected = {name for name in base.linear_shapes if files.settings.selects(name)}
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
