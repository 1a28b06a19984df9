"""What to do about folders that are no adapter but nearly one. No torch."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lorax_vlm.foreign import printable, quoted

PICKLE_FILES = ("adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "adapter_model.pkl")
_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_MOST_ENTRIES = 1000
_NAMED_KEY = re.compile(r"\.lora_[AB]\.([^.]+)\.weight$")
_CONVERT = (
    "if you trust whoever made it, convert it once where PEFT is installed: "
    "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
)


def advise_on_missing(folder: Path, file: str) -> str:
    """Why a file of an adapter is not in a folder, and what may be meant instead."""
    if not folder.is_dir():
        return f"the folder {'is a file' if folder.exists() else 'does not exist'}"
    hint = _about_weights(_entries(folder)) if file == _WEIGHTS_FILE else ""
    if file == _CONFIG_FILE:
        hint = _about_config(folder, _entries(folder))
    return f"{file} does not exist{f'; {hint}' if hint else ''}"


def _about_weights(there: Sequence[str]) -> str:
    pickles = [name for name in PICKLE_FILES if name in there]
    if pickles:
        return f"{pickles[0]} is a pickle, which can run code when opened, so it is never read; {_CONVERT}"
    parts = [name for name in there if name.startswith("adapter_model-") and name.endswith(".safetensors")]
    if parts or f"{_WEIGHTS_FILE}.index.json" in there:
        return f"its weights are split over {len(parts)} files, which PEFT does not read; join them into that one"
    others = [name for name in there if name.endswith(".safetensors")]
    return f"there is {_listed(others)}" if others else ""


def _about_config(folder: Path, there: Sequence[str]) -> str:
    below = [name for name in there if (folder / name / _CONFIG_FILE).is_file()]
    if below:
        return f"there is one in {_listed(f'{name}/' for name in below)}: name that folder"
    if "config.json" in there:
        return "config.json is that of a whole model, not of an adapter"
    return ""


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path, _ in zip(folder.iterdir(), range(_MOST_ENTRIES), strict=False))
    except OSError:
        return []


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(printable(name)[:80] for name in shown[:3]) + (" ..." if len(shown) > 3 else "")


def advise_on_keys(unexpected: Sequence[str]) -> list[str]:
    """What keys that are not PEFT's have in common, and how to get those of PEFT."""
    if not unexpected:
        return []
    first = unexpected[0]
    named = [_NAMED_KEY.search(name) for name in unexpected]
    if all(named) and len(words := {found[1] for found in named if found}) == 1:
        return [
            f"its keys hold the name of an adapter ({quoted(words.pop())}): they come from the model's own state_dict; "
            "save it with PEFT's save_pretrained"
        ]
    if all(name.startswith("base_model.model.base_model.model.") for name in unexpected):
        return ["its keys begin with base_model.model. twice: it was saved from a PEFT model within another"]
    if all(".lora_" in name and not name.startswith("base_model.model.") for name in unexpected):
        return [f"PEFT's keys begin with base_model.model.; these begin with {quoted(first.split('.')[0])}"]
    return []
