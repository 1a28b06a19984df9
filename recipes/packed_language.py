"""Stage 3 for decoder-only language models: rows filled with turns about one image, each ending with the end token.

    head turn eos turn eos ...

With one question per row the language model sees five times fewer questions for the same work, and questions that
need two things at once (existence, place) do not get off the ground.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lorax_vlm.models.families.base import IGNORED_LABEL, target_loss
from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from recipes.mentions import MentionReadout
from recipes.optimizer import Optimizer
from recipes.qformer import QueryReadout, query_outputs
from recipes.scene_pool import ScenePool
from recipes.turns import Turn, TurnSource

ROW_TOKENS = 76
"""Text tokens per row: a row is filled with turns about its image, so nothing is spent on padding."""


def packed_row(family: Blip2DecoderFamily, turns: Iterator[Turn]) -> tuple[str, list[int], list[int]]:
    """The first prompt, and ids and labels of as many turns as fit."""
    head = family.query_tokens + 1
    prompt, target = next(turns)
    ids, labels = family.training_row(prompt, target, "turn")
    while True:
        more_ids, more_labels = family.training_row(*next(turns), "turn")
        if len(ids) + len(more_ids) - 2 * head > ROW_TOKENS:
            return prompt, ids, labels
        ids += more_ids[head:]
        labels += more_labels[head:]


def train_packed_language(
    model: Any,
    family: Blip2DecoderFamily,
    pool: ScenePool,
    readout: QueryReadout | None,
    make_turns: TurnSource,
    question_prompt: str,
    steps: int,
    seed: int,
    *,
    mention_weight: float = 0.2,
) -> None:
    """Train language model, projection and Q-Former in place; without ``readout`` the language model only, further.

    A Q-Former that reads the instruction reads that of a row's first turn. Stage 2's loss stays on whatever it reads,
    so that the other turns of the row find what they need as well.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    width = model.config.text_config.hidden_size
    mentions = MentionReadout(width, family.tokenizer) if mention_weight else None
    trained = [*model.language_model.parameters(), *(mentions.parameters() if mentions else ())]
    if readout is not None:
        trained += [model.query_tokens, *model.qformer.parameters(), *readout.parameters()]
        trained += model.language_projection.parameters()
        for parameter in model.language_model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05)
    optimizer = Optimizer(trained, 1.5e-3 if readout is not None else 7e-4, steps, "language")
    for rows, others in zip(pool.batches(64, steps, seed), pool.batches(64, steps, seed + 1), strict=True):
        packed = [
            packed_row(family, make_turns(pool.scenes[a], pool.scenes[b], rng, question_prompt))
            for a, b in zip(rows.tolist(), others.tolist(), strict=True)
        ]
        input_ids = pad_sequence([torch.tensor(ids) for _, ids, _ in packed], True, family.pad_id)
        labels = pad_sequence([torch.tensor(row) for _, _, row in packed], True, IGNORED_LABEL)
        queries = query_outputs(model, pool.pixel_values(rows), family, [prompt for prompt, _, _ in packed])
        embeddings = model.get_input_embeddings()(input_ids)
        image_positions = (input_ids == family.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(image_positions, model.language_projection(queries))
        mask = (input_ids != family.pad_id).long()
        outputs = model.language_model(inputs_embeds=embeddings, attention_mask=mask, output_hidden_states=True)
        loss = target_loss(outputs.logits, labels)
        if readout is not None:
            loss = loss + 0.3 * readout(queries, pool.places[rows], pool.backgrounds[rows])
        if mentions is not None:
            scenes = [pool.scenes[row] for row in rows.tolist()]
            loss = loss + mention_weight * mentions(outputs.hidden_states[-2], input_ids, scenes)
        optimizer.step(loss)
