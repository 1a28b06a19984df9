"""Turning what is not plain LoRA (DoRA, LoHa, LoKr, ...) into plain LoRA, with the error said.

What a method does to a linear layer is read off the layer itself: PEFT merges it into the weight, and the difference to
the weight before is brought back to a low rank. So it does not matter which method it was, only that it changes weights
and nothing else. The result is accepted when the whole model's logits agree.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from lorax_vlm.adapters.factors import Update
from lorax_vlm.adapters.peft_config import CONFIG_FILE, MAX_RANK
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.errors import UnsupportedAdapter
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.runtime.canary import QUESTION, SCENE

LOGITS_TOLERANCE = 1e-3
"""Largest change of any logit, relative to the change that the adapter makes."""
_WEIGHT_TOLERANCE = 1e-4
"""What is left out of an update, relative to its norm, when the rank is free."""
# Methods that keep something outside of weights, or that change the base when they begin.
_REFUSED = {
    "modules_to_save": "it brings whole modules",
    "trainable_token_indices": "it brings embeddings",
    "layer_replication": "it repeats layers",
    "megatron_config": "it is for Megatron's layers",
}


@dataclass(frozen=True)
class FoldReport:
    """What folding did."""

    folder: Path
    method: str
    ranks: tuple[int, ...]
    """The distinct ranks of the result, ascending."""
    weight_error: float
    """Largest of all sites, relative to the update's norm."""
    logits_error: float
    """See ``LOGITS_TOLERANCE``."""


@torch.no_grad()
def fold_adapter(
    base: LoadedModel, folder: Path, out: Path, *, rank: int | None = None, tolerance: float = LOGITS_TOLERANCE
) -> FoldReport:
    """Write a plain LoRA directory that does what a PEFT directory of another method does.

    Args:
        base: The base it was trained on, without adapters attached and not quantised.
        folder: A PEFT directory that changes linear layers.
        out: Where the plain one is written.
        rank: Most ranks per site. None: as many as an exact result needs.
        tolerance: Largest accepted change of logits; see ``LOGITS_TOLERANCE``.

    Raises:
        UnsupportedAdapter: It changes more than linear weights, or the result would not do the same.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    method = "DoRA" if config.get("use_dora") else str(config.get("peft_type"))
    problems = [f"{option}: {reason}" for option, reason in _REFUSED.items() if config.get(option)]
    if base.placement.quantization != "none":
        problems.append(f"the base is in {base.placement.quantization}: weights merged into it would be rounded")
    if problems:
        raise UnsupportedAdapter(folder.name, problems)
    plain = _logits(base)
    with _peft_on(base, folder) as layers:
        original = _logits(base)
        updates = {name: _read_update(name, layer, rank, folder.name) for name, layer in layers.items()}
    write_updates(out, {site: update for site, (update, _) in updates.items()}, base.entry.identity)
    attached = AttachedAdapters(base)
    attached.attach("folded", out)
    with attached.using("folded"):
        folded = _logits(base)
    attached.detach_all()
    effect = float((original - plain).abs().max())
    error = float((folded - original).abs().max()) / effect if effect else float("inf")
    largest = max(lost for _, lost in updates.values())
    if error > tolerance:
        reason = f"as plain LoRA of rank {rank or MAX_RANK} its logits differ by {error:.1e} of its effect"
        raise UnsupportedAdapter(folder.name, [f"{method}: {reason}; {tolerance:.0e} are allowed"])
    ranks = tuple(sorted({update.rank for update, _ in updates.values()}))
    return FoldReport(out, method, ranks, largest, error)


def _logits(base: LoadedModel) -> Tensor:
    prompt = base.entry.question_prompt(QUESTION)
    pixels = base.family.pixel_values([make_scene(SCENE).image]).to(base.device)
    features = base.family.encode_images(base.model, pixels, [prompt])
    return base.family.answer_logits(base.model, features, [prompt])


@contextmanager
def _peft_on(base: LoadedModel, folder: Path) -> Iterator[dict[str, Any]]:
    """The base with an adapter in plain PEFT, and its adapted layers by name; plain again afterwards."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base.model, str(folder)).eval()
    try:
        missing = [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]
        if missing:
            raise UnsupportedAdapter(folder.name, [f"it does not belong to {base.name}: {missing[0][:200]}"])
        named = base.model.named_modules()
        yield {name: module for name, module in named if isinstance(module, BaseTunerLayer)}
    finally:
        model.unload()
        base.model.eval().requires_grad_(False)


def _read_update(name: str, layer: Any, rank: int | None, adapter: str) -> tuple[Update, float]:
    """What a layer's weight gains by merging, at low rank, and the share of it that is lost."""
    inner = layer.get_base_layer()
    weight, bias = inner.weight.detach().clone(), getattr(inner, "bias", None)
    before = None if bias is None else bias.detach().clone()
    layer.merge(safe_merge=True)
    change = (inner.weight - weight).double().cpu().numpy()
    same_bias = before is None or torch.equal(inner.bias, before)
    layer.unmerge()
    inner.weight.data.copy_(weight)
    if before is not None:
        inner.bias.data.copy_(before)
    if not same_bias:
        raise UnsupportedAdapter(adapter, [f"{name}: it changes the bias, which LoRA cannot"])
    if change.ndim != 2:
        raise UnsupportedAdapter(adapter, [f"{name}: it is no linear layer"])
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    total = float(np.linalg.norm(s))
    if not total:
        return Update(np.zeros((1, change.shape[1])), np.zeros((change.shape[0], 1))), 0.0
    lost = np.sqrt(np.maximum(total**2 - np.cumsum(s**2), 0)) / total
    enough = int(np.searchsorted(-lost, -_WEIGHT_TOLERANCE) + 1)
    kept = max(1, min(rank or MAX_RANK, enough, len(s)))
    return Update.of_singular(u[:, :kept], s[:kept], vt[:kept]), float(lost[kept - 1])
