"""What of ``smolvlm-mini`` is not learnt: its configuration, its template, and how its images are prepared."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase, SmolVLMConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from recipes.miniature import HEADS, IMAGE_SIDE_PX, PATCH_PX, WIDTH

SCALE = 2
IMAGE_TOKENS = (IMAGE_SIDE_PX // PATCH_PX // SCALE) ** 2
TEMPLATE = """\
{{- '<|im_start|>' -}}
{%- for message in messages -%}
    {{- message.role.capitalize() + ':' -}}
    {%- for part in message.content -%}
        {{- '<image>' if part.type == 'image' else (' ' if loop.first else '') + part.text -}}
    {%- endfor -%}
    {{- '<end_of_utterance>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'Assistant:' -}}
{%- endif -%}
"""
"""A conversation begins once; roles with capitals, a space before a text unless an image stands there."""


def make_config(
    tokenizer: PreTrainedTokenizerBase, kind: type[PretrainedConfig] = SmolVLMConfig, **changes: Any
) -> Any:
    """The real architecture at miniature size.

    Args:
        tokenizer: Whose ids it has.
        kind: Of Idefics3 or SmolVLM.
        changes: Width of the language model and its number of layers, for even smaller ones: ``width``, ``layers``.
    """
    width, layers = changes.get("width", WIDTH), changes.get("layers", 3)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": IMAGE_SIDE_PX,
        "patch_size": PATCH_PX,
    }
    return kind(
        scale_factor=SCALE,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=True,
        vision_config=vision,
        text_config=text,
        dtype="float32",
    )


def make_image_processor(most_tiles: int = 1, kind: type = SmolVLMImageProcessorPil) -> Any:
    """How images are prepared: squashed into one tile, or taken apart into at most so many in a row or column."""
    return kind(
        size={"longest_edge": most_tiles * IMAGE_SIDE_PX},
        max_image_size={"longest_edge": IMAGE_SIDE_PX},
        do_image_splitting=most_tiles > 1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def save_preparation(folder: Path, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
    """Write what a checkpoint has beside its weights and configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
