"""A loss that helps every language stage: where a question names an object, the model knows where it is and how large.

At the last word of each mention ("the red *circle*") a throw-away head reads place and size from the hidden states one
layer below the top, or reads that there is no such object. So the layers above find each object's properties where it
is named. Without it a base answers "Where is the red circle?" by looking at the very end, holds one object at a time,
and an adapter that has to compare two of them (left of, above) stays at chance.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.words import COLORS, PLACES, SHAPES, SIZES, SceneObject

Mention = tuple[int, int, SceneObject | None]
"""(row, position, object); None where no such object exists."""


class MentionReadout(nn.Module):
    """The throw-away head, and the words of the tokenizer it reads by."""

    def __init__(self, width: int, tokenizer: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.place, self.size = nn.Linear(width, len(PLACES) + 1), nn.Linear(width, len(SIZES) + 1)
        self.words = [tokenizer.decode([index]).strip().lower() for index in range(len(tokenizer))]

    def forward(self, states: Tensor, input_ids: Tensor, scenes: Sequence[Scene]) -> Tensor:
        """Loss over all mentions in ``input_ids`` ``(B, T)``, read from ``states`` ``(B, T, D)``."""
        mentions: list[Mention] = [
            (row, position, item)
            for row, (ids, scene) in enumerate(zip(input_ids.tolist(), scenes, strict=True))
            for position, item in find_mentions([self.words[token] for token in ids], scene.objects)
        ]
        if not mentions:
            return torch.zeros(())
        found = self.norm(states[[row for row, *_ in mentions], [position for _, position, _ in mentions]])
        places = torch.tensor([1 + list(PLACES).index(item.place) if item else 0 for *_, item in mentions])
        sizes = torch.tensor([1 + SIZES.index(item.size) if item else 0 for *_, item in mentions])
        cross_entropy = nn.functional.cross_entropy
        return cross_entropy(self.place(found), places) + cross_entropy(self.size(found), sizes)


def find_mentions(words: Sequence[str], objects: Sequence[SceneObject]) -> list[tuple[int, SceneObject | None]]:
    """Positions of the words that end the naming of one object, with the object, None where it does not exist.

    A colour or a shape alone names an object when exactly one has it.
    """
    mentions: list[tuple[int, SceneObject | None]] = []
    for index, word in enumerate(words):
        if word not in SHAPES and word not in COLORS:
            continue
        before, after = words[index - 1] if index else "", words[index + 1] if index + 1 < len(words) else ""
        if word in SHAPES and before in COLORS:
            named = [item for item in objects if (item.color, item.shape) == (before, word)]
            mentions.append((index, named[0] if named else None))
        elif word in SHAPES or after not in SHAPES:
            named = [item for item in objects if word in (item.color, item.shape)]
            if len(named) == 1:
                mentions.append((index, named[0]))
    return mentions
