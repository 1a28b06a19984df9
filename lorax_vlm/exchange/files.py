"""Writing adapters as plain PEFT directories from nothing but their updates. No torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from lorax_vlm.adapters.factors import Updates
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages
from lorax_vlm.paths import naming


def write_updates(folder: Path, updates: Updates, base: str, seen: SeenImages | None = None) -> Path:
    """Write a PEFT directory whose scaling is 1 everywhere; returns the folder.

    Args:
        folder: Made if it does not exist.
        updates: By module name; ranks may differ.
        base: What the configuration calls its base.
        seen: The images that the updates were learnt from. None: not known.

    Raises:
        PathError: It cannot be written.
    """
    with naming(folder):
        return _write(folder, updates, base, seen)


def _write(folder: Path, updates: Updates, base: str, seen: SeenImages | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {site: update.rank for site, update in updates.items()}
    rank = max(ranks.values())
    others = {site: own for site, own in sorted(ranks.items()) if own != rank}
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(updates),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "task_type": None,
    }
    tensors = {}
    for site, update in updates.items():
        for factor, values in (("A", update.a), ("B", update.b)):
            tensors[f"base_model.model.{site}.lora_{factor}.weight"] = np.ascontiguousarray(values, np.float32)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
    # Not by the library's own writing, whose errors are of a kind of its own.
    (folder / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    if seen is not None:
        (folder / SEEN_FILE).write_bytes(seen.to_bytes())
    return folder
