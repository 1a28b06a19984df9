"""Writing adapters as plain PEFT directories from nothing but their updates."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lorax_vlm.adapters.factors import Updates
from lorax_vlm.adapters.files import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE


def write_updates(folder: Path, updates: Updates, base: str) -> Path:
    """Write a PEFT directory whose scaling is 1 everywhere; returns the folder.

    Args:
        folder: Made if it does not exist.
        updates: By module name; ranks may differ.
        base: What the configuration calls its base.
    """
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
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder
