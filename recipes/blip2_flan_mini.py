"""Makes ``blip2-flan-mini``: the shared vision encoder, a Q-Former of its own, and a T5 language model.

python -m recipes.blip2_flan_mini --out build/blip2-flan-mini
"""

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, Blip2QFormerConfig, T5Config

from lorax_vlm.models.families.blip2_t5 import Blip2EncoderDecoderFamily
from recipes.card import measure_checkpoint
from recipes.checkpoint import load_shared_vision, parse_arguments, save
from recipes.miniature import HEADS, QFORMER_SHAPE, QUERIES, VISION_CONFIG, WIDTH, make_image_processor
from recipes.qformer import train_qformer
from recipes.scene_pool import load_pool
from recipes.seq2seq_language import train_seq2seq_language
from recipes.tokenizers import make_t5_tokenizer
from recipes.turns import caption_turns, with_sides

NAME = "blip2-flan-mini"
QUESTION_PROMPT = "Question: {question} Short answer:"
STEPS = {"qformer": 300, "language": 2000, "sides": 2000}


def make_config(tokenizer: object, image_token_id: int) -> Blip2Config:
    """The real architecture at miniature size: gated GELU, an output head of its own, pad 0 and ``</s>`` 1."""
    text = T5Config(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=2 * WIDTH,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=HEADS,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        dense_act_fn="gelu",
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    qformer = Blip2QFormerConfig(vocab_size=len(tokenizer), **QFORMER_SHAPE)  # type: ignore[arg-type]
    return Blip2Config(
        vision_config=VISION_CONFIG,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=image_token_id,
        dtype="float32",
    )


def main() -> None:
    """Train the Q-Former and the language model, save the checkpoint in half precision, measure it."""
    arguments = parse_arguments(__doc__, NAME)
    tokenizer = make_t5_tokenizer(QUESTION_PROMPT)
    processor = Blip2Processor(make_image_processor(), tokenizer, num_query_tokens=QUERIES)
    config = make_config(tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    pool = load_pool("train", arguments.scenes, processor.image_processor, arguments.cache)
    torch.manual_seed(arguments.seed + 1)
    model = Blip2ForConditionalGeneration(config)
    # A T5 built from a configuration ties its head; the real one's is a matrix of its own.
    model.language_model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.language_model.shared.weight))
    load_shared_vision(model)
    model.eval()  # no dropout: the data never repeat
    family = Blip2EncoderDecoderFamily(processor, config, NAME)
    seed = arguments.seed + 1
    readout = train_qformer(model, family, pool, STEPS["qformer"], seed)
    train_seq2seq_language(model, family, pool, readout, caption_turns, QUESTION_PROMPT, STEPS["language"], seed)
    turns = with_sides(caption_turns, share=0.35, beside_share=0.7)
    train_seq2seq_language(model, family, pool, None, turns, QUESTION_PROMPT, STEPS["sides"], seed + 3)
    save(model, config, processor, arguments.out)
    measure_checkpoint(arguments.out)


if __name__ == "__main__":
    main()
