"""What the miniatures have in common: width, image size, queries and the vision encoder's shape."""

from typing import Any

from transformers import Blip2VisionConfig, BlipImageProcessorPil

WIDTH, HEADS, IMAGE_SIDE_PX, PATCH_PX = 160, 5, 64, 8
QUERIES = 16

VISION_CONFIG = Blip2VisionConfig(
    hidden_size=WIDTH,
    intermediate_size=3 * WIDTH,
    num_hidden_layers=3,
    num_attention_heads=HEADS,
    image_size=IMAGE_SIDE_PX,
    patch_size=PATCH_PX,
    initializer_range=0.02,
)

QFORMER_SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "cross_attention_frequency": 1,
    "encoder_hidden_size": WIDTH,
    "max_position_embeddings": 64,
}


def make_image_processor() -> BlipImageProcessorPil:
    """The BLIP preprocessing at the miniatures' size."""
    return BlipImageProcessorPil(size={"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX})
