"""Stage 3: a language model that captions plainly and answers the base's own questions, and nothing more.

What the styles and skills need is present but not practised: sizes can be asked for, and every word of the styles
occurs in repeat-after-me sentences, so an adapter has to learn a way of speaking, not new embeddings.
"""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lorax_vlm.data.scene_captions import CREATIVE_ENDINGS, CREATIVE_OPENINGS, STYLES
from lorax_vlm.data.scene_questions import BASE_QUESTION_TYPES, SKILL_QUESTION_TYPES
from lorax_vlm.data.scenes import Scene, make_scene
from lorax_vlm.models.families.base import IGNORED_LABEL, target_loss
from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from recipes.optimizer import Optimizer
from recipes.qformer import QueryReadout, query_outputs
from recipes.scene_pool import ScenePool

QUESTION_PROMPT = "Question: {question} Answer:"
REPEAT_PROMPT = "Repeat: {words} Answer:"
CAPTION_SHARE = 0.35
"""Share of rows that begin with a caption; the others begin with a question."""
QUESTION_KINDS = {"base": 0.74, "size": 0.1, "guess": 0.06, "repeat": 0.1}
"""Shares of the questions. ``guess`` are the skills left for adapters, answered as in another scene: the form of an
answer without the skill."""
ROW_TOKENS = 76
"""Text tokens per row: a row is filled with questions about its image, so nothing is spent on padding."""


def training_texts(scene: Scene, other: Scene, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, target) turns about a scene."""
    if rng.random() < CAPTION_SHARE:
        yield "", scene.caption("plain")
    while True:
        kind = rng.choices(list(QUESTION_KINDS), weights=list(QUESTION_KINDS.values()))[0]
        if kind == "base":
            yield _ask(scene, rng.choice(BASE_QUESTION_TYPES), rng)
        elif kind == "guess":
            yield _ask(other, rng.choice(SKILL_QUESTION_TYPES), rng)
        elif kind == "size":
            item = rng.choice(scene.objects)
            yield QUESTION_PROMPT.format(question=f"What size is the {item.name}?"), item.size
        else:
            # In brackets a word has no space before it, as at the beginning of a caption: another token.
            chosen = rng.choices(STYLE_WORDS, k=rng.randint(2, 6))
            words = " ".join(word if rng.random() < 0.6 else f"({word})" for word in chosen)
            yield REPEAT_PROMPT.format(words=words), words


def _ask(scene: Scene, kind: str, rng: random.Random) -> tuple[str, str]:
    question, answer = rng.choice([(q, a) for type_, q, a in scene.questions() if type_ == kind])
    return QUESTION_PROMPT.format(question=question), answer


def training_row(family: Blip2DecoderFamily, turns: Iterator[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels of as many turns as fit, each ending with the end token: ``head turn eos turn eos ...``."""
    head = family.query_tokens + 1
    ids, labels = family.training_row(*next(turns), "turn")
    while True:
        more_ids, more_labels = family.training_row(*next(turns), "turn")
        if len(ids) + len(more_ids) - 2 * head > ROW_TOKENS:
            return ids, labels
        ids += more_ids[head:]
        labels += more_labels[head:]


def _style_words() -> list[str]:
    """Every word of any caption or question, and of the playful phrases, sorted."""
    words: set[str] = set()
    for seed in range(400):
        scene = make_scene(seed)
        texts = [scene.caption(style) for style in STYLES]
        texts += [text for _, question, answer in scene.questions() for text in (question, answer)]
        words.update(word for text in texts for word in text.replace(",", "").replace("?", "").split())
    for phrase in [*CREATIVE_OPENINGS.values(), *(ending for pair in CREATIVE_ENDINGS.values() for ending in pair)]:
        words.update(phrase.split())
    return sorted(words)


STYLE_WORDS = _style_words()


def train_language(
    model: Any, family: Blip2DecoderFamily, pool: ScenePool, readout: QueryReadout, steps: int, seed: int
) -> None:
    """Train language model, projection and Q-Former in place."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    for parameter in model.language_model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)
    trained = [
        model.query_tokens,
        *model.qformer.parameters(),
        *model.language_projection.parameters(),
        *model.language_model.parameters(),
        *readout.parameters(),
    ]
    optimizer = Optimizer(trained, 1.5e-3, steps, "language")
    for rows, others in zip(pool.batches(64, steps, seed), pool.batches(64, steps, seed + 1), strict=True):
        row_tensors = [
            [torch.tensor(part) for part in training_row(family, training_texts(pool.scenes[a], pool.scenes[b], rng))]
            for a, b in zip(rows.tolist(), others.tolist(), strict=True)
        ]
        input_ids = pad_sequence([ids for ids, _ in row_tensors], batch_first=True, padding_value=family.pad_id)
        labels = pad_sequence([row for _, row in row_tensors], batch_first=True, padding_value=IGNORED_LABEL)
        queries = query_outputs(model, pool.pixel_values(rows))
        embeddings = model.get_input_embeddings()(input_ids)
        image_positions = (input_ids == family.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(image_positions, model.language_projection(queries))
        mask = (input_ids != family.pad_id).long()
        logits = model.language_model(inputs_embeds=embeddings, attention_mask=mask).logits
        remembered = readout(queries, pool.places[rows], pool.backgrounds[rows])
        optimizer.step(target_loss(logits, labels) + 0.3 * remembered)
