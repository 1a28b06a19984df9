"""The image path that BLIP-2 has whatever its language model: preprocessing, vision encoder, Q-Former, projection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessorPil

from lorax_vlm.models.families.base import Batch
from lorax_vlm.models.families.image_tokens import batch_with_features

# Only the language model's linear layers are quantised.
IMAGE_PATH_MODULES = ("vision_model", "qformer", "query_tokens", "language_projection")


class Blip2ImagePath:
    """The part of a family that sees."""

    model_class: ClassVar[Any] = Blip2ForConditionalGeneration
    unquantized: ClassVar[tuple[str, ...]] = (*IMAGE_PATH_MODULES, "lm_head")
    image_path_reads_prompt = False
    takes_features = True
    packs = True
    processor: Any

    @staticmethod
    def load_processor(folder: Path) -> Any:
        """See ``Family.load_processor``."""
        processor = Blip2Processor.from_pretrained(folder, trust_remote_code=False)
        # With torchvision installed another implementation would be chosen, whose resizing differs slightly.
        processor.image_processor = BlipImageProcessorPil.from_pretrained(folder, trust_remote_code=False)
        return processor

    @staticmethod
    def after_loading(model: Any, checkpoint: str) -> None:
        """Nothing is wrong."""

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images to ``(B, 3, H, W)`` float32."""
        pixels: Tensor = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def stack_pixels(self, rows: Sequence[Tensor]) -> Tensor:
        """``(B, 3, H, W)``: all images have one size."""
        return torch.stack(list(rows))

    def encode_images(self, model: Any, pixel_values: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Vision encoder, Q-Former and projection: ``(B, 3, H, W)`` to ``(B, Q, D)``. No text enters here."""
        features: Tensor = model.get_image_features(pixel_values, return_dict=True).pooler_output
        return features

    def encode_batch(self, model: Any, batch: Batch) -> Tensor:
        """See ``Family.encode_batch``; a Q-Former that reads finds its instruction in the batch."""
        instructions = {key: value for key, value in batch.items() if key.startswith("qformer_")}
        features: Tensor = model.get_image_features(
            batch["pixel_values"], **instructions, return_dict=True
        ).pooler_output
        return features

    def features_batch(self, batch: Batch, features: Tensor) -> dict[str, Any]:
        """See ``Family.features_batch``."""
        return batch_with_features(batch, features)
