"""Adapters with random, non-zero factors. Zero-initialised LoRA would pass almost any test."""

import dataclasses
import json
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.identity import describe_adapted
from lorax_vlm.adapters.manifest import MANIFEST_FILE, BaseIdentity, Manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import caption

EVERYWHERE = Recipe("everywhere", rank=4, groups=("lm-attention", "lm-mlp", "projection", "qformer", "vision"))


def write_random_adapter(
    base: LoadedModel, folder: Path, recipe: str | Recipe = "medium", seed: int = 1, scale: float = 0.3
) -> Path:
    """A PEFT directory, without a manifest, whose every factor is random. Made without touching the base."""
    recipe = get_recipe(recipe)
    shapes = base.description.linear_shapes
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for site in sorted(recipe.sites(base.family.name, shapes)):
        width_out, width_in = shapes[site]
        a = torch.randn(recipe.rank, width_in, generator=generator) / width_in**0.5
        b = torch.randn(width_out, recipe.rank, generator=generator) / recipe.rank**0.5
        weights[f"base_model.model.{site}.lora_A.weight"] = scale * a
        weights[f"base_model.model.{site}.lora_B.weight"] = scale * b
    LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.effective_alpha,
        target_modules=recipe.pattern(base.family.name),
        base_model_name_or_path=base.name,
    ).save_pretrained(str(folder))
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def write_manifest(base: LoadedModel, folder: Path, **changes: object) -> Manifest:
    """A manifest that says the adapter in ``folder`` was trained on ``base``."""
    manifest = Manifest(name=folder.name, skill=caption("concise"), base=identify(base, folder), trained=True)
    manifest = dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def identify(base: LoadedModel, folder: Path | None = None) -> BaseIdentity:
    """What a manifest says of a base, and of its weights in the places that the adapter in ``folder`` changes."""
    known = base.description
    return BaseIdentity(
        name=base.entry.identity,
        family=base.family.name,
        configuration=dict(known.configuration),
        components=base.fingerprint.components,
        adapted=describe_adapted(base.fingerprint, read_adapter_files(folder, "a").sites) if folder is not None else {},
        preparation=dict(known.preparation),
        quantization=base.placement.quantization,
        dtype=base.placement.dtype,
    )


def edit_config(folder: Path, **changes: object) -> None:
    """Change entries of ``adapter_config.json``."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace (or, with None, drop) tensors of ``adapter_model.safetensors``."""
    weights = {**load_file(folder / WEIGHTS_FILE), **change}
    save_file({key: value.contiguous() for key, value in weights.items() if value is not None}, folder / WEIGHTS_FILE)
