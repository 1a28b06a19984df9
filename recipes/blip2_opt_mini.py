"""Makes ``blip2-opt-mini``: the vision encoder all miniatures share, and the first language model on top of it.

    python -m recipes.blip2_opt_mini --out build/blip2-opt-mini

Under an hour on two cores. Prints its figures on held-out scenes and writes them into the model card.
"""

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    GPT2Tokenizer,
    OPTConfig,
)

from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from recipes.checkpoint import parse_arguments, save
from recipes.miniature import HEADS, QFORMER_SHAPE, QUERIES, VISION_CONFIG, WIDTH, make_image_processor
from recipes.packed_language import train_packed_language
from recipes.qformer import train_qformer
from recipes.scene_pool import load_pool
from recipes.sides import train_sides
from recipes.tokenizers import make_opt_tokenizer
from recipes.turns import caption_turns
from recipes.vision import train_vision

NAME = "blip2-opt-mini"
QUESTION_PROMPT = "Question: {question} Answer:"
STEPS = {"vision": 1400, "qformer": 500, "language": 2600}


def make_config(tokenizer: GPT2Tokenizer) -> Blip2Config:
    """The real architecture at miniature size, with the real ids: bos 2, pad 1, and the line break as eos."""
    line_break = tokenizer.convert_tokens_to_ids("Ċ")
    text = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        ffn_dim=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        dropout=0.1,
        bos_token_id=2,
        eos_token_id=line_break,
        pad_token_id=1,
    )
    qformer = Blip2QFormerConfig(vocab_size=len(tokenizer), **QFORMER_SHAPE)
    return Blip2Config(
        vision_config=VISION_CONFIG,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        dtype="float32",
    )


def main() -> None:
    """Train the first three stages and save the checkpoint in half precision; then stage 4."""
    arguments = parse_arguments(__doc__, NAME)
    processor = Blip2Processor(make_image_processor(), make_opt_tokenizer(QUESTION_PROMPT), num_query_tokens=QUERIES)
    config = make_config(processor.tokenizer)
    pool = load_pool("train", arguments.scenes, processor.image_processor, arguments.cache)
    print(f"{len(pool.scenes)} scenes, {len(processor.tokenizer)} tokens", flush=True)

    vision = train_vision(VISION_CONFIG, pool, STEPS["vision"], arguments.seed)
    torch.manual_seed(arguments.seed)
    model = Blip2ForConditionalGeneration(config)
    model.vision_model.load_state_dict(vision.state_dict())
    model.eval()  # no dropout: the data never repeat
    family = Blip2DecoderFamily(processor, config, NAME)
    readout = train_qformer(model, family, pool, STEPS["qformer"], arguments.seed)
    train_packed_language(
        model,
        family,
        pool,
        readout,
        caption_turns,
        QUESTION_PROMPT,
        STEPS["language"],
        arguments.seed,
        mention_weight=0.0,
    )
    save(model, config, processor, arguments.out)
    train_sides(arguments.out, arguments.out, arguments.cache, arguments.scenes)


if __name__ == "__main__":
    main()
