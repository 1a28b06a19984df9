"""The image path that BLIP-2 has whatever its language model: preprocessing, vision encoder, Q-Former, projection."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor


class Blip2ImagePath:
    """The part of a family that sees."""

    image_path_reads_prompt = False
    takes_features = True
    processor: Any

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess RGB images to ``(B, 3, H, W)`` float32."""
        return self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]

    def stack_pixels(self, rows: Sequence[Tensor]) -> Tensor:
        """``(B, 3, H, W)``: all images have one size."""
        return torch.stack(list(rows))

    def encode_images(self, model: Any, pixel_values: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Vision encoder, Q-Former and projection: ``(B, 3, H, W)`` to ``(B, Q, D)``. No text enters here."""
        return model.get_image_features(pixel_values, return_dict=True).pooler_output
