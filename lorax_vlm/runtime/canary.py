"""What an adapter answers to a fixed input: recorded when it is made, asked again wherever it is loaded.

An adapter that loads without an error may still do nothing, or something else: another version of a library, a base
with other weights, a factor the wrong way round. Its answer tells: not the logits, most of which are the base's, but
what the adapter adds to them, in proportion to its size.
"""

import hashlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lorax_vlm.adapters.files import AdapterBytes
from lorax_vlm.adapters.manifest import Canary, CanaryAnswer, Manifest
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.runtime.attached import AttachedAdapters

SCENE = 2_000_000_000
QUESTION = "How many shapes are there?"
TOLERANCE = 0.01
"""Of the change's norm: the same kind of base in float32, on another machine or with other batches."""
COARSE = 0.2
"""Of the change's norm: a base in 16 bits, quantised, or otherwise than when it was recorded. Measured on the
miniatures, bfloat16 moves a change by up to .12 of its norm beside what ``_rounding`` says."""
_MOST_DOUBT = 0.4
"""Where more than this share of the change may be due to rounding, nothing is told: 0 is what nothing looks like."""
_FLOAT32_ROUNDING = 4e-6
"""Of the largest logit: sums in another order."""
_TOP, _CHANGED, _FEWEST = 8, 32, 4
_slots = itertools.count()


@dataclass(frozen=True)
class CanaryReport:
    """How an adapter answers now, compared with its record."""

    exact: bool
    """Byte for byte, with and without the adapter."""
    agrees: bool
    """What it changes is what was recorded, within the tolerance."""
    largest_difference: float
    """Distance of the change to the recorded one, relative to the recorded one's norm; 1 for one that does nothing."""
    reason: str
    tells: bool = True
    """False: the change is too small, or too little was recorded, to tell an adapter that works from one that does
    nothing."""


def take_canary(attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest) -> Canary:
    """Ask the base for its answer to the fixed input, with and without an adapter."""
    prompt = manifest.prompt.replace("{question}", QUESTION)
    plain, adapted = _ask(attached, source, manifest, prompt, SCENE)
    change = _change(plain, adapted)
    values, places = change.abs().topk(min(_CHANGED, len(change)))
    changed = [(place, round(float(change[place]), 7)) for place in places.tolist()]
    return Canary(SCENE, prompt, _record(plain), _record(adapted), float(values[0]), changed)


def check_canary(attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest) -> CanaryReport | None:
    """Ask again and compare with the record; None when there is none.

    Raises:
        PromptError: What was asked cannot be asked of this base.
    """
    canary = manifest.canary
    if canary is None:
        return None
    attached.base.family.check_prompt(canary.prompt)
    plain, adapted = _ask(attached, source, manifest, canary.prompt, canary.scene)
    exact = (_digest(plain), _digest(adapted)) == (canary.base.digest, canary.adapted.digest)
    recorded = _recorded_change(canary)
    found = _change(plain, adapted)
    now = [float(found[place]) if 0 <= place < len(found) else math.inf for place in recorded]
    norm = math.hypot(*recorded.values())
    error = math.hypot(*(other - value for other, value in zip(now, recorded.values(), strict=True)))
    relative = error / norm if norm else math.inf
    if not norm or canary.base.digest == canary.adapted.digest:
        reason = "when it was recorded it changed no logit, so nothing tells whether it works"
        return CanaryReport(exact, False, relative, reason, tells=False)
    if exact:
        return CanaryReport(True, True, 0.0, "byte for byte")
    tolerance, rounding = _tolerances(attached, manifest)
    doubt = tolerance + rounding * float(plain.abs().max()) * math.sqrt(len(recorded)) / norm
    if doubt > _MOST_DOUBT:
        reason = f"its change of at most {canary.largest_change:.1e} is too small to tell from rounding on this base"
        return CanaryReport(False, False, relative, reason, tells=False)
    if len(recorded) < min(_FEWEST, len(found)):
        reason = f"only {len(recorded)} of its changes were recorded, by an older version"
        return CanaryReport(False, False, relative, reason, tells=False)
    largest = float(found.abs().max())
    relative = max(relative, abs(largest - canary.largest_change) / max(abs(value) for value in recorded.values()))
    reason = f"its change differs by {relative:.1e} of its size from the recorded one, {doubt:.0e} are allowed"
    return CanaryReport(False, relative <= doubt, relative, reason)


def _tolerances(attached: AttachedAdapters, manifest: Manifest) -> tuple[float, float]:
    """What may differ: of the change's norm, and, of the largest logit, in each logit."""
    base, trained_on = attached.base, manifest.base
    same_kind = trained_on is not None and (
        (trained_on.dtype, trained_on.quantization) == (base.placement.dtype, base.placement.quantization)
    )
    rounding = max(_rounding(base.placement.dtype), _rounding(trained_on.dtype if trained_on is not None else ""))
    return (TOLERANCE if same_kind and rounding == _FLOAT32_ROUNDING else COARSE), rounding


def _rounding(dtype: str) -> float:
    """Half a unit in the last place, at least what another order of summing makes; of an unknown type the coarsest."""
    known = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    return max(torch.finfo(known).eps / 2, _FLOAT32_ROUNDING)


def _recorded_change(canary: Canary) -> dict[int, float]:
    """What the adapter changed, by place; of records without it, as far as their largest logits tell."""
    if canary.change is not None:
        return dict(canary.change)
    plain = dict(canary.base.top)
    return {place: value - plain[place] for place, value in canary.adapted.top if place in plain}


def _change(plain: Tensor, adapted: Tensor) -> Tensor:
    width = min(len(plain), len(adapted))  # an own head may have further answers
    return adapted[:width] - plain[:width]


def _ask(
    attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest, prompt: str, scene: int
) -> tuple[Tensor, Tensor]:
    """Logits ``(V,)`` of the plain base and of the adapter."""
    slot = f"canary {next(_slots)} of {manifest.name}"
    attached.attach(slot, source, manifest)
    try:
        image = make_scene(scene).image
        return attached.answer_logits(None, image, prompt), attached.answer_logits(slot, image, prompt)
    finally:
        attached.detach(slot)


def _record(logits: Tensor) -> CanaryAnswer:
    values, indices = logits.topk(min(_TOP, len(logits)))
    top = [(index, round(value, 5)) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
    return CanaryAnswer(_digest(logits), top)


def _digest(logits: Tensor) -> str:
    return hashlib.sha256(logits.cpu().contiguous().numpy().tobytes()).hexdigest()
