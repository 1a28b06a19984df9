"""Stage 1: a vision encoder that knows what stands in each place, and where each patch is.

Both losses are needed. Without the position task (and with the library's tiny position embeddings) the Q-Former
cannot select places later, and every stage after it stalls.
"""

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

from lorax_vlm.data.world.words import BACKGROUNDS, PLACES
from recipes.optimizer import Optimizer
from recipes.scene_pool import PLACE_CLASSES, ScenePool


class _Readout(nn.Module):
    """Throw-away heads that turn patches into the truths of stage 1."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.place = nn.Linear(width, sum(PLACE_CLASSES.values()))
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.position = nn.Linear(width, 2 * grid)
        self.register_buffer("windows", _place_windows(grid))

    def losses(self, states: Tensor, places: Tensor, backgrounds: Tensor) -> Tensor:
        """States ``(B, 1 + grid², D)`` to the sum of the three losses."""
        patches = states[:, 1:]
        pooled = torch.einsum("pn,bnd->bpd", self.windows, patches)
        position = self.position(patches).view(-1, 2, self.grid)
        index = torch.arange(self.grid**2)
        truth = torch.stack([index // self.grid, index % self.grid], dim=1).repeat(len(states), 1)
        return (
            place_loss(self.place(pooled), places)
            + nn.functional.cross_entropy(self.background(states[:, 0]), backgrounds)
            + nn.functional.cross_entropy(position.flatten(0, 1), truth.flatten())
        )


def _place_windows(grid: int) -> Tensor:
    """For each place, an average over the half-grid window of patches around it: ``(P, grid²)``."""
    windows = torch.zeros(len(PLACES), grid, grid)
    half = grid // 2
    for index, (column, row) in enumerate(PLACES.values()):
        top, left = row * half // 2, column * half // 2
        windows[index, top : top + half, left : left + half] = 1 / half**2
    return windows.flatten(1)


def place_loss(logits: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy of colour, shape and size at every place, summed over the three.

    Args:
        logits: ``(B, P, sum(PLACE_CLASSES))``.
        places: ``(B, P, 3)``.
    """
    parts = logits.split(list(PLACE_CLASSES.values()), dim=-1)
    return sum(
        (nn.functional.cross_entropy(part.flatten(0, 1), places[..., k].flatten()) for k, part in enumerate(parts)),
        start=torch.zeros(()),
    )


def train_vision(config: Blip2VisionConfig, pool: ScenePool, steps: int, seed: int) -> Blip2VisionModel:
    """Train the encoder from random weights."""
    torch.manual_seed(seed)
    model = Blip2VisionModel(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)
        elif name == "embeddings.patch_embedding.weight":
            nn.init.normal_(parameter, std=0.08)
    nn.init.normal_(model.embeddings.position_embedding, std=0.5)
    nn.init.normal_(model.embeddings.class_embedding, std=0.5)
    readout = _Readout(config.hidden_size, config.image_size // config.patch_size)
    optimizer = Optimizer([*model.parameters(), *readout.parameters()], 2e-3, steps, "vision")
    for rows in pool.batches(64, steps, seed):
        states = model(pool.pixel_values(rows)).last_hidden_state
        optimizer.step(readout.losses(states, pool.places[rows], pool.backgrounds[rows]))
    return model.eval().requires_grad_(False)
