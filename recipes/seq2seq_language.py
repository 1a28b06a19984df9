"""Stages 3 and 4 for an encoder-decoder language model: several questions about each image, one row each.

The decoder answers one prompt at a time, so turns cannot be packed into a row; the image path is shared instead.
"""

import random
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lorax_vlm.models.families.base import token_loss
from lorax_vlm.models.families.blip2_t5 import Blip2EncoderDecoderFamily
from recipes.mentions import MentionReadout
from recipes.optimizer import Optimizer
from recipes.qformer import QueryReadout, pool_query_outputs, query_outputs
from recipes.scene_pool import ScenePool
from recipes.turns import TurnSource

IMAGES, TURNS = 40, 5


def train_seq2seq_language(
    model: Any,
    family: Blip2EncoderDecoderFamily,
    pool: ScenePool,
    readout: QueryReadout | None,
    make_turns: TurnSource,
    question_prompt: str,
    steps: int,
    seed: int,
) -> None:
    """Train a fresh language model and the projection in place, and the Q-Former beside them where it has ``readout``.

    Without, the Q-Former is frozen, and every scene goes through it once; the embeddings of words are kept.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    words = model.language_model.shared.weight.detach().clone()
    start_language_model(model.language_model)
    mentions = MentionReadout(model.config.text_config.hidden_size, family.tokenizer)
    trained = [*model.language_model.parameters(), *mentions.parameters(), *model.language_projection.parameters()]
    if readout is not None:
        trained += [model.query_tokens, *model.qformer.parameters(), *readout.parameters()]
    else:
        model.language_model.shared.weight.data.copy_(words)
        cached = pool_query_outputs(model, pool, family)
    optimizer = Optimizer(trained, 1.5e-3, steps, "language")
    for rows, others in zip(pool.batches(IMAGES, steps, seed), pool.batches(IMAGES, steps, seed + 1), strict=True):
        turns = [
            turn
            for a, b in zip(rows.tolist(), others.tolist(), strict=True)
            for turn in islice(make_turns(pool.scenes[a], pool.scenes[b], rng, question_prompt), TURNS)
        ]
        queries = cached[rows].float() if readout is None else query_outputs(model, pool.pixel_values(rows), family)
        features = model.language_projection(queries).repeat_interleave(TURNS, dim=0)
        batch = family.text_batch((), [p for p, _ in turns], [t for _, t in turns])
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        image_positions = (batch["input_ids"] == family.image_token_id).unsqueeze(-1)
        outputs = model.language_model(
            inputs_embeds=embeddings.masked_scatter(image_positions, features),
            attention_mask=batch["attention_mask"],
            decoder_input_ids=batch["decoder_input_ids"],
            output_hidden_states=True,
        )
        scenes = [pool.scenes[row] for row in rows.tolist() for _ in range(TURNS)]
        located = mentions(outputs.encoder_hidden_states[-2], batch["input_ids"], scenes)
        loss = token_loss(outputs.logits, batch["labels"]) + 0.5 * located
        if readout is not None:
            loss = loss + 0.3 * readout(queries, pool.places[rows], pool.backgrounds[rows])
        optimizer.step(loss)


@torch.no_grad()
def start_language_model(language_model: Any) -> None:
    """Random weights, and three of the encoder's heads that look at the words around: see ``look_around``."""
    for name, parameter in language_model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5 if "relative_attention_bias" in name else 0.05)
    look_around(language_model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight)


@torch.no_grad()
def look_around(bias: Tensor) -> None:
    """Start three of the encoder's heads on the word before, on the few words before that, and on the words after.

    T5 knows the order of words by these biases alone. From random ones it does not learn which of two objects in a
    question is the first, while there is a single object in most.

    Args:
        bias: ``(32, heads)``: distances 0 to 15 back, then 0 to 15 ahead; exact up to 7.
    """
    bias[1, 0] += 5
    bias[2:6, 1] += 3
    bias[17:22, 2] += 3
