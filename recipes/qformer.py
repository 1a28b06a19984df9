"""Stage 2: a Q-Former whose groups of queries each tell what stands in one place, and one query the background."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorax_vlm.data.world.words import BACKGROUNDS, PLACES
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.instructblip import InstructBlipFamily
from recipes.optimizer import Optimizer
from recipes.scene_pool import PLACE_CLASSES, ScenePool
from recipes.vision import place_loss


class QueryReadout(nn.Module):
    """The throw-away head of stage 2. Stage 3 keeps its loss on, or the Q-Former forgets what no caption asks for."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.per_place = queries // len(PLACES)
        self.place = nn.Linear(width * self.per_place, sum(PLACE_CLASSES.values()))
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def forward(self, queries: Tensor, places: Tensor, backgrounds: Tensor) -> Tensor:
        """Query outputs ``(B, Q, D)`` to a loss. Queries ``k*G .. (k+1)*G`` belong to place ``k``; the last is free."""
        groups = queries[:, : self.per_place * len(PLACES)].reshape(len(queries), len(PLACES), -1)
        return place_loss(self.place(groups), places) + nn.functional.cross_entropy(
            self.background(queries[:, -1]), backgrounds
        )


def initialise_qformer(model: Any) -> None:
    """Unit-variance queries and weights of 0.05: with the library's zeros every query would be the same."""
    nn.init.normal_(model.query_tokens, std=1.0)
    for parameter in [*model.qformer.parameters(), *model.language_projection.parameters()]:
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)


def query_outputs(model: Any, pixel_values: Tensor, family: Family, prompts: Sequence[str] = ()) -> Tensor:
    """The Q-Former's outputs before the projection, ``(B, Q, D)``; the vision encoder is frozen.

    InstructBLIP's Q-Former reads the prompts too; without any, an empty instruction.
    """
    with torch.no_grad():
        states = model.vision_model(pixel_values).last_hidden_state
    queries = model.query_tokens.expand(len(states), -1, -1)
    if not isinstance(family, InstructBlipFamily):
        return model.qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
    text = family.instruction_batch(list(prompts) or [""] * len(states))
    seen = torch.ones(queries.shape[:2], dtype=torch.long)
    outputs = model.qformer(
        input_ids=text["qformer_input_ids"],
        attention_mask=torch.cat([seen, text["qformer_attention_mask"]], dim=1),
        query_embeds=queries,
        encoder_hidden_states=states,
    )
    return outputs.last_hidden_state[:, : queries.shape[1]]


@torch.no_grad()
def pool_query_outputs(model: Any, pool: ScenePool, family: Family) -> Tensor:
    """The query outputs of every scene, ``(N, Q, D)`` float16, for learning from a frozen Q-Former."""
    rows = torch.arange(len(pool.scenes)).split(256)
    return torch.cat([query_outputs(model, pool.pixel_values(chunk), family).half() for chunk in rows])


def train_qformer(model: Any, family: Family, pool: ScenePool, steps: int, seed: int) -> QueryReadout:
    """Train query tokens and Q-Former in place; returns the head for stage 3."""
    torch.manual_seed(seed)
    initialise_qformer(model)
    readout = QueryReadout(model.config.qformer_config.hidden_size, model.config.num_query_tokens)
    parameters = [model.query_tokens, *model.qformer.parameters(), *readout.parameters()]
    optimizer = Optimizer(parameters, 1e-3, steps, "qformer")
    for rows in pool.batches(64, steps, seed):
        outputs = query_outputs(model, pool.pixel_values(rows), family)
        optimizer.step(readout(outputs, pool.places[rows], pool.backgrounds[rows]))
    return readout
