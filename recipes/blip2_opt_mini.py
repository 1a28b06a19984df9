"""Makes ``blip2-opt-mini``: the vision encoder all miniatures share, and the first language model on top of it.

    python -m recipes.blip2_opt_mini --out build/blip2-opt-mini

Under an hour on two cores. Prints its figures on held-out scenes and writes them into the model card.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    GPT2Tokenizer,
    OPTConfig,
)

from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from recipes.card import measure, write_card
from recipes.language import QUESTION_PROMPT, REPEAT_PROMPT, STYLE_WORDS, train_language
from recipes.qformer import train_qformer
from recipes.scene_pool import load_pool
from recipes.vision import train_vision

NAME = "blip2-opt-mini"
WIDTH, HEADS, IMAGE_SIDE_PX, PATCH_PX = 160, 5, 64, 8
QUERIES = 16
STEPS = {"vision": 1400, "qformer": 500, "language": 2600}

VISION_CONFIG = Blip2VisionConfig(
    hidden_size=WIDTH,
    intermediate_size=3 * WIDTH,
    num_hidden_layers=3,
    num_attention_heads=HEADS,
    image_size=IMAGE_SIDE_PX,
    patch_size=PATCH_PX,
    initializer_range=0.02,
)


def make_image_processor() -> BlipImageProcessorPil:
    """The BLIP preprocessing at the miniatures' size."""
    return BlipImageProcessorPil(size={"height": IMAGE_SIDE_PX, "width": IMAGE_SIDE_PX})


def make_tokenizer() -> GPT2Tokenizer:
    """A byte-level BPE in which every word of the scene world is one token. Ids 0 to 3 are OPT's."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=256,
    )
    tokenizer.add_tokens(["<s>"], special_tokens=True)
    return tokenizer


def _corpus() -> list[str]:
    """Every prompt and every word of the scene world, each word with and without a space before it."""
    prompts = [QUESTION_PROMPT.format(question="What size is the shape?"), REPEAT_PROMPT.format(words="")]
    words = [text for word in STYLE_WORDS for text in (word, f" {word}")]
    return (prompts + words) * 2


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
    qformer = Blip2QFormerConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        cross_attention_frequency=1,
        encoder_hidden_size=WIDTH,
        max_position_embeddings=64,
    )
    return Blip2Config(
        vision_config=VISION_CONFIG,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        dtype="float32",
    )


def main() -> None:
    """Train the three stages and save the checkpoint in half precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build") / NAME)
    parser.add_argument("--cache", type=Path, default=Path("build") / "scenes", help="rendered scenes")
    parser.add_argument("--scenes", type=int, default=24_000, help="number of training scenes")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    start = time.monotonic()
    processor = Blip2Processor(make_image_processor(), make_tokenizer(), num_query_tokens=QUERIES)
    config = make_config(processor.tokenizer)
    pool = load_pool("train", arguments.scenes, processor.image_processor, arguments.cache)
    print(f"{len(pool.scenes)} scenes, {len(processor.tokenizer)} tokens", flush=True)

    vision = train_vision(VISION_CONFIG, pool, STEPS["vision"], arguments.seed)
    torch.manual_seed(arguments.seed)
    model = Blip2ForConditionalGeneration(config)
    model.vision_model.load_state_dict(vision.state_dict())
    model.eval()  # no dropout: the data never repeat
    readout = train_qformer(model, pool, STEPS["qformer"], arguments.seed)
    family = Blip2DecoderFamily(processor, config, NAME)
    train_language(model, family, pool, readout, STEPS["language"], arguments.seed)

    # Stored in half precision; the configuration says float32, so every loader computes in float32.
    model.half().save_pretrained(arguments.out)
    config.dtype = "float32"
    config.save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)
    print(f"saved {arguments.out} after {time.monotonic() - start:.0f} s", flush=True)
    figures = measure(arguments.out)
    write_card(arguments.out, figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
