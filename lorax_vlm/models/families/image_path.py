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
from lorax_vlm.models.families.pictures import Features, Picture, of_rows, stacked

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

    def prepare(self, images: Sequence[Image.Image]) -> list[Picture]:
        """``pixel_values`` ``(3, H, W)``; all images have one size."""
        pixels: Tensor = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return [Picture({"pixel_values": row}) for row in pixels]

    def pixel_batch(self, pictures: Sequence[Picture]) -> Batch:
        """``pixel_values`` ``(B, 3, H, W)``."""
        return {"pixel_values": torch.stack([picture.tensors["pixel_values"] for picture in pictures])}

    def lengths(self, pictures: Sequence[Picture]) -> list[int]:
        """One each."""
        return [1] * len(pictures)

    def encode_images(self, model: Any, pictures: Sequence[Picture], prompts: Sequence[str] = ()) -> list[Features]:
        """Vision encoder, Q-Former and projection: ``(Q, D)`` of each. No text enters here."""
        return self.encode_batch(model, pictures, {})

    def encode_batch(self, model: Any, pictures: Sequence[Picture], batch: Batch) -> list[Features]:
        """See ``Family.encode_batch``; a Q-Former that reads finds its instruction in the batch."""
        pixels = self.pixel_batch(pictures)["pixel_values"].to(model.device)
        read = {key: value.to(model.device) for key, value in batch.items() if key.startswith("qformer_")}
        return of_rows(model.get_image_features(pixels, **read, return_dict=True).pooler_output)

    def with_features(self, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """See ``Family.with_features``."""
        return batch_with_features(batch, stacked(features))
