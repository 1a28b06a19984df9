"""The copy of a base that is trained, with its LoRA layers, and the adapter that is saved of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import nn

from lorax_vlm.adapters.peft_layers import add_peft_layers
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.errors import PathError, TrainingError
from lorax_vlm.models.families.heads import grow_head
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.spec import HEAD
from lorax_vlm.training.random_state import preserved_random_state


def linear_names(model: nn.Module) -> list[str]:
    """The linear layers of a base, whether or not PEFT's layers are on it."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]


def lora_config(base: LoadedModel, recipe: Recipe) -> LoraConfig:
    """PEFT's configuration for a recipe.

    Raises:
        ValueError: A group of sites matches nothing on this base.
    """
    recipe.sites(base.family.name, linear_names(base.model))
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.effective_alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.pattern(base.family.name),
        base_model_name_or_path=str(base.folder),
    )


def write_untrained_adapter(base: LoadedModel, recipe: Recipe, folder: Path, seed: int = 0) -> Path:
    """Write the PEFT directory of an adapter that is the identity."""
    with preserved_random_state():
        return save_adapter(peft_copy(base, recipe, seed), base, folder)


def peft_copy(
    base: LoadedModel,
    recipe: Recipe,
    seed: int,
    labels: Sequence[str] = (),
    slot: str = "default",
    layers: dict[type[nn.Module], type[nn.Module]] | None = None,
) -> PeftModel:
    """A copy of the base with a fresh trainable adapter, and with a head of its own for ``labels``.

    The copy has modules of its own and shares the frozen tensors, so the base stays as it is.

    Raises:
        TrainingError: PEFT's layers are on the base.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
        raise TrainingError(f"Adapters are attached to {base.name}; a new one can only be made on the plain base.")
    twin = base.plain_copy().model
    torch.manual_seed(seed)
    lora, own_head = lora_config(base, recipe), cast(nn.Sequential, getattr(twin, HEAD, None))
    if labels:
        lora.modules_to_save = [HEAD]
    if layers:
        lora._register_custom_module(layers)
    peft_model = add_peft_layers(twin, lora, slot)
    if labels:
        twin.get_submodule(HEAD).modules_to_save[slot] = grow_head(own_head, labels)
    return peft_model


def save_adapter(peft_model: PeftModel, base: LoadedModel, folder: Path, slot: str = "default") -> Path:
    """Write one adapter's PEFT directory; returns it.

    Raises:
        PathError: It cannot be written.
    """
    config = peft_model.peft_config[slot]
    former = config.base_model_name_or_path, config.revision
    # A name that means the same on every machine, never a path of this one; checkpoints would look for it on the hub.
    config.base_model_name_or_path, config.revision = base.entry.identity, base.revision
    try:
        peft_model.save_pretrained(str(folder), selected_adapters=[slot], save_embedding_layers=False)
    except (OSError, SafetensorError) as error:
        raise PathError(str(folder), f"the adapter cannot be written: {error}") from error
    finally:
        config.base_model_name_or_path, config.revision = former
    return folder if slot == "default" else folder / slot


def keep_base_in_evaluation(model: nn.Module) -> None:
    """Evaluation mode everywhere except in the adapter's own dropout."""
    model.eval()
    for name, module in model.named_modules():
        if ".lora_dropout." in name:
            module.train()
