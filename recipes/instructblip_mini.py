"""Makes ``instructblip-mini``: the shared vision encoder, a Q-Former that reads the instruction, and a LLaMA.

python -m recipes.instructblip_mini --out build/instructblip-mini
"""

import torch
from transformers import (
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
)

from lorax_vlm.models.families.instructblip import InstructBlipFamily
from recipes.card import measure_checkpoint
from recipes.checkpoint import load_shared_vision, parse_arguments, save
from recipes.miniature import HEADS, QFORMER_SHAPE, QUERIES, VISION_CONFIG, WIDTH, make_image_processor
from recipes.packed_language import train_packed_language
from recipes.qformer import train_qformer
from recipes.scene_pool import load_pool
from recipes.tokenizers import make_bert_tokenizer, make_llama_tokenizer
from recipes.turns import instruction_turns, with_sides

NAME = "instructblip-mini"
QUESTION_PROMPT = "Question: {question} Short Answer:"
STEPS = {"qformer": 300, "language": 1200}
_VISION_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "initializer_range"),
)


def make_config(processor: InstructBlipProcessor) -> InstructBlipConfig:
    """The real architecture at miniature size, with ``</s>`` (2) as bos and eos and ``[PAD]`` as pad."""
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=400,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    qformer = InstructBlipQFormerConfig(vocab_size=len(processor.qformer_tokenizer), **QFORMER_SHAPE)
    vision = InstructBlipVisionConfig(**{key: getattr(VISION_CONFIG, key) for key in _VISION_KEYS})
    return InstructBlipConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        dtype="float32",
    )


def main() -> None:
    """Train the Q-Former and the language model, and save the checkpoint in half precision."""
    arguments = parse_arguments(__doc__, NAME)
    tokenizer = make_llama_tokenizer(QUESTION_PROMPT)
    qformer_tokenizer = make_bert_tokenizer(QUESTION_PROMPT, 64)
    qformer_tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    processor = InstructBlipProcessor(make_image_processor(), tokenizer, qformer_tokenizer, num_query_tokens=QUERIES)
    config = make_config(processor)
    pool = load_pool("train", arguments.scenes, processor.image_processor, arguments.cache)
    torch.manual_seed(arguments.seed + 2)
    model = InstructBlipForConditionalGeneration(config)
    load_shared_vision(model)
    model.eval()  # no dropout: the data never repeat
    family = InstructBlipFamily(processor, config, NAME)
    seed = arguments.seed + 2
    readout = train_qformer(model, family, pool, STEPS["qformer"], seed)
    train_packed_language(
        model, family, pool, readout, with_sides(instruction_turns), QUESTION_PROMPT, STEPS["language"], seed
    )
    save(model, config, processor, arguments.out)
    measure_checkpoint(arguments.out)


if __name__ == "__main__":
    main()
