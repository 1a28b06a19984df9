"""The ends of every recipe: its arguments, the vision encoder it shares, and saving with a model card."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lorax_vlm.models.catalog import MINIS_DIR

VISION_SOURCE = MINIS_DIR / "blip2-opt-mini" / "model.safetensors"
_START = time.monotonic()


def parse_arguments(description: str, name: str) -> argparse.Namespace:
    """``--out``, ``--cache``, ``--scenes``, ``--seed``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build") / name)
    parser.add_argument("--cache", type=Path, default=Path("build") / "scenes", help="rendered scenes")
    parser.add_argument("--scenes", type=int, default=24_000, help="number of training scenes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load_shared_vision(model: Any) -> None:
    """Take over the vision encoder of ``blip2-opt-mini``, value for value, and freeze it."""
    weights = {
        key.removeprefix("vision_model."): value.float()
        for key, value in load_file(VISION_SOURCE).items()
        if key.startswith("vision_model.")
    }
    model.vision_model.load_state_dict(weights)
    model.vision_model.requires_grad_(False)


def save(model: Any, config: Any, processor: Any, out: Path) -> None:
    """Write a checkpoint in half precision."""
    model.to(torch.float16).save_pretrained(out)
    # The configuration says float32, so every loader computes in float32.
    config.dtype = "float32"
    config.save_pretrained(out)
    _keep_head_untied(out)
    processor.save_pretrained(out)
    for path in out.rglob("tokenizer_config.json"):
        _edit_json(path, _drop_loading_options)
    print(f"saved {out} after {time.monotonic() - _START:.0f} s", flush=True)


def _keep_head_untied(folder: Path) -> None:
    """T5's configuration class calls every head tied; the files of FLAN-T5 say it is not, and must here."""

    def untie(config: dict[str, Any]) -> None:
        text = config.get("text_config", {})
        if text.get("model_type") == "t5":
            text["tie_word_embeddings"] = False

    _edit_json(folder / "config.json", untie)


def _drop_loading_options(config: dict[str, Any]) -> None:
    """How a tokenizer happened to be loaded says nothing about it."""
    for option in ("is_local", "local_files_only"):
        config.pop(option, None)


def _edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
