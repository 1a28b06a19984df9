"""Stage 3 for an encoder-decoder language model: several questions about each image, one row each.

The decoder answers one prompt at a time, so turns cannot be packed into a row; the image path is shared instead.
"""

import random
from itertools import islice
from typing import Any

import torch
from torch import nn

from lorax_vlm.models.families.base import token_loss
from lorax_vlm.models.families.blip2_t5 import Blip2EncoderDecoderFamily
from recipes.mentions import MentionReadout
from recipes.optimizer import Optimizer
from recipes.qformer import QueryReadout, query_outputs
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
    """Train language model, projection and Q-Former in place; without ``readout`` the language model only, further."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    if readout is not None:
        for name, parameter in model.language_model.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.5 if "relative_attention_bias" in name else 0.05)
    mentions = MentionReadout(model.config.text_config.hidden_size, family.tokenizer)
    trained = [*model.language_model.parameters(), *mentions.parameters()]
    if readout is not None:
        trained += [model.query_tokens, *model.qformer.parameters(), *readout.parameters()]
        trained += model.language_projection.parameters()
    optimizer = Optimizer(trained, 1.5e-3 if readout is not None else 7e-4, steps, "language")
    for rows, others in zip(pool.batches(IMAGES, steps, seed), pool.batches(IMAGES, steps, seed + 1), strict=True):
        turns = [
            turn
            for a, b in zip(rows.tolist(), others.tolist(), strict=True)
            for turn in islice(make_turns(pool.scenes[a], pool.scenes[b], rng, question_prompt), TURNS)
        ]
        queries = query_outputs(model, pool.pixel_values(rows), family)
        features = model.language_projection(queries).repeat_interleave(TURNS, dim=0)
        placeholder = torch.empty(len(turns), 0)
        batch = family.training_batch(placeholder, [p for p, _ in turns], [t for _, t in turns])
        embeddings = model.get_input_embeddings()(batch["input_ids"])
        image_positions = (batch["input_ids"] == family.image_token_id).unsqueeze(-1)
        outputs = model.language_model(
            inputs_embeds=embeddings.masked_scatter(image_positions, features),
            attention_mask=batch["attention_mask"],
            decoder_input_ids=batch["decoder_input_ids"],
        )
        loss = token_loss(outputs.logits, batch["labels"])
        if readout is not None:
            loss = loss + 0.3 * readout(queries, pool.places[rows], pool.backgrounds[rows])
        scenes = [pool.scenes[row] for row in rows.tolist() for _ in range(TURNS)]
        located = mentions(outputs.encoder_last_hidden_state, batch["input_ids"], scenes)
        optimizer.step(loss + 0.2 * located)
