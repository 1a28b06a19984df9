"""What an adapter answers to a fixed input: recorded when it is made, asked again wherever it is loaded.

An adapter that loads without an error may still do nothing, or something else: another version of a library, a base
with other weights, a factor the wrong way round. Its answer tells.
"""

import hashlib
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
TOLERANCE = 1e-3
"""Relative to the largest logit: float32 on another machine, or with other batches. Bases in 16 bits get ``COARSE``."""
COARSE = 0.05
_TOP = 8


@dataclass(frozen=True)
class CanaryReport:
    """How an adapter answers now, compared with its record."""

    exact: bool
    """Byte for byte, with and without the adapter."""
    agrees: bool
    """Within the tolerance."""
    largest_difference: float
    """Of the recorded logits, relative to the largest."""
    reason: str


def take_canary(attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest) -> Canary:
    """Ask the base for its answer to the fixed input, with and without an adapter."""
    prompt = manifest.prompt.replace("{question}", QUESTION)
    plain, adapted = _ask(attached, source, manifest, prompt, SCENE)
    width = min(len(plain), len(adapted))  # ViLT's own heads have further answers
    change = float((adapted[:width] - plain[:width]).abs().max())
    return Canary(SCENE, prompt, _record(plain), _record(adapted), change)


def check_canary(attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest) -> CanaryReport | None:
    """Ask again and compare with the record; None when there is none."""
    canary = manifest.canary
    if canary is None:
        return None
    answers = _ask(attached, source, manifest, canary.prompt, canary.scene)
    pairs = list(zip((canary.base, canary.adapted), answers, strict=True))
    exact = all(_record(found).digest == known.digest for known, found in pairs)
    largest = 0.0
    for known, found in pairs:
        scale = max(abs(value) for _, value in known.top)
        for index, value in known.top:
            other = float(found[index]) if index < len(found) else float("inf")
            largest = max(largest, abs(other - value) / scale)
    same_kind = manifest.base is not None and (
        manifest.base.dtype == attached.base.placement.dtype
        and manifest.base.quantization == attached.base.placement.quantization
    )
    tolerance = TOLERANCE if same_kind and attached.base.compute_dtype == torch.float32 else COARSE
    agrees = exact or largest <= tolerance
    reason = "byte for byte" if exact else f"logits differ by {largest:.1e} of the largest, {tolerance:.0e} are allowed"
    return CanaryReport(exact, agrees, largest, reason)


def _ask(
    attached: AttachedAdapters, source: Path | AdapterBytes, manifest: Manifest, prompt: str, scene: int
) -> tuple[Tensor, Tensor]:
    """Logits ``(V,)`` of the plain base and of the adapter."""
    slot = f"canary of {manifest.name}"
    attached.attach(slot, source, manifest)
    try:
        image = make_scene(scene).image
        return attached.answer_logits(None, image, prompt), attached.answer_logits(slot, image, prompt)
    finally:
        attached.detach(slot)


def _record(logits: Tensor) -> CanaryAnswer:
    values, indices = logits.topk(min(_TOP, len(logits)))
    digest = hashlib.sha256(logits.cpu().contiguous().numpy().tobytes()).hexdigest()
    top = [(index, round(value, 5)) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
    return CanaryAnswer(digest, top)
