"""Chat checkpoints of random weights, small enough to make in a test."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from lorax_vlm.models.families.tiles import TILE_TAGS
from recipes.smolvlm_checkpoint import make_config, make_image_processor, save_preparation
from recipes.tokenizers import make_chat_tokenizer

KINDS: dict[str, tuple[type, Any, type]] = {
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil),
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil),
}


def write_tiny(folder: Path, kind: str = "smolvlm", most_tiles: int = 3, seed: int = 0) -> Path:
    """A checkpoint of random weights that say something; its images are taken apart where they are large."""
    config_class, model_class, processor_class = KINDS[kind]
    tokenizer = make_chat_tokenizer(["Describe the image."], TILE_TAGS)
    torch.manual_seed(seed)
    config = make_config(tokenizer, config_class, width=40, layers=2)
    model = model_class(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in name else 0.15)
    model.save_pretrained(folder)
    save_preparation(folder, tokenizer, make_image_processor(most_tiles, processor_class))
    return folder
