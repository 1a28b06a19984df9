"""The image's place in a row of text: ``Q`` image tokens whose embeddings are replaced by the image's features."""

from typing import Any

from torch import Tensor
from transformers.models.blip_2.modeling_blip_2 import BaseModelOutputWithVisionQformerOutputs


def image_token_problems(processor: Any, config: Any) -> list[str]:
    """How processor and configuration disagree about the image; each way it would be ignored, misread or refused."""
    problems = []
    if processor.num_query_tokens != config.num_query_tokens:
        problems.append(
            f"processor.num_query_tokens is {processor.num_query_tokens}, the model has {config.num_query_tokens}: "
            "the image would be ignored without a word"
        )
    token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    if not isinstance(config.image_token_index, int) or token_id != config.image_token_index:
        problems.append(f"image_token_index is {config.image_token_index}, the tokenizer's <image> is {token_id}")
    size, side = processor.image_processor.size, config.vision_config.image_size
    if (size["height"], size["width"]) != (side, side):
        problems.append(f"images are resized to {size['height']}x{size['width']}, the model reads {side}x{side}")
    return problems


def special_id_problems(tokenizer: Any, **special_ids: int) -> list[str]:
    """Special ids that are not in the tokenizer's vocabulary."""
    return [
        f"{label} id {value} is not in the tokenizer's vocabulary of {len(tokenizer)}"
        for label, value in special_ids.items()
        if not isinstance(value, int) or not 0 <= value < len(tokenizer)
    ]


def require_image_tokens(input_ids: Tensor, image_token_id: int, count: int) -> None:
    """Raise ``ValueError`` unless every row has exactly ``count`` image tokens.

    transformers consumes image features in order over the whole batch: one row with too few image tokens would hand
    its remaining features to the next row.
    """
    counts = (input_ids == image_token_id).sum(dim=1).tolist()
    wrong = {row: found for row, found in enumerate(counts) if found != count}
    if wrong:
        raise ValueError(f"Each row needs {count} image tokens; rows with another number: {wrong}.")


def batch_with_features(batch: dict[str, Tensor], features: Tensor) -> dict[str, Any]:
    """A training batch whose images are already encoded: the model then skips its image path.

    Args:
        batch: Of ``Family.text_batch``.
        features: ``(B, Q, D)``.
    """
    kept = {key: value for key, value in batch.items() if not key.startswith("qformer_")}
    encoded = BaseModelOutputWithVisionQformerOutputs(pooler_output=features)
    unused: dict[str, None] = {"pixel_values": None}
    if "qformer_input_ids" in batch:  # InstructBLIP's forward pass demands it, and does not look at it
        unused["qformer_input_ids"] = None
    return {**kept, **unused, "mm_encoder_outputs": {"image": encoded}}


def embed_with_image(model: Any, input_ids: Tensor, features: Tensor, image_token_id: int) -> Tensor:
    """Token embeddings ``(B, T, D)`` with ``features`` ``(B, Q, D)`` in the places of the image tokens."""
    embeddings = model.get_input_embeddings()(input_ids)
    positions = (input_ids == image_token_id).unsqueeze(-1)
    return embeddings.masked_scatter(positions, features.to(embeddings.dtype))
