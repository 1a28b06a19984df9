"""ViLT's choice of patches without chance.

The library draws the patches of a batch with torch's global generator, in evaluation too: the order of valid ones where
an image has as many as the batch has room for, and which padding fills the rest. That changes what other code draws
afterwards, makes threads disturb each other, and rounds differently on every call. Attention does not care about order,
so the patches are taken in order here; the result is the library's but for rounding.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def choose_patches_in_order(model: Any) -> None:
    """Let a ``ViltForQuestionAnswering`` choose its patches as described above."""
    embeddings = model.vilt.embeddings
    embeddings.visual_embed = partial(_embed_patches, embeddings)


def _embed_patches(
    embeddings: Any, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int | None = None
) -> tuple[Tensor, Tensor, tuple[Tensor, tuple[int, int]]]:
    """Embedded patches ``(B, 1 + P, D)``, their mask ``(B, 1 + P)``, and where they are, ``((B, P, 2), (H, W))``.

    The first position is the class token. ``P`` is the largest number of valid patches of any image, at most
    ``max_image_length`` where that is positive; an image with more keeps evenly spaced ones.
    """
    patches = embeddings.patch_embeddings(pixel_values)
    rows, width, high, wide = patches.shape
    valid = nn.functional.interpolate(pixel_mask[:, None].float(), size=(high, wide))[:, 0].long()
    heights, widths = valid[:, :, 0].sum(dim=1), valid[:, 0].sum(dim=1)
    places = _positions(embeddings, heights.tolist(), widths.tolist(), high, wide)
    chosen = _choose(valid.flatten(1), max_image_length)

    def take(grid: Tensor) -> Tensor:
        return grid.flatten(2).transpose(1, 2).gather(1, chosen[:, :, None].expand(-1, -1, width))

    first = embeddings.position_embeddings[:, :1].expand(rows, -1, -1)
    tokens = torch.cat([embeddings.cls_token.expand(rows, -1, -1), take(patches)], dim=1)
    embedded = embeddings.dropout(tokens + torch.cat([first, take(places)], dim=1))
    mask = valid.flatten(1).gather(1, chosen)
    where = torch.stack([chosen // wide, chosen % wide], dim=-1)
    return embedded, torch.cat([mask.new_ones(rows, 1), mask], dim=1), (where, (high, wide))


def _positions(embeddings: Any, heights: list[int], widths: list[int], high: int, wide: int) -> Tensor:
    """The learnt grid of positions stretched over each image's valid part, ``(B, D, H, W)``, zeros beyond it."""
    side = embeddings.config.image_size // embeddings.config.patch_size
    grid = embeddings.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    stretched = [
        nn.functional.pad(
            nn.functional.interpolate(grid, size=(h, w), mode="bilinear", align_corners=True),
            (0, wide - w, 0, high - h),
        )
        for h, w in zip(heights, widths, strict=True)
    ]
    return torch.cat(stretched)


def _choose(valid: Tensor, limit: int | None) -> Tensor:
    """Numbers of the patches to keep, ``(B, P)``: of each row its valid ones in order, then padding."""
    counts = valid.sum(dim=1).tolist()
    most = max(counts) if limit is None or limit <= 0 else min(max(counts), limit)
    order = valid.argsort(dim=1, descending=True, stable=True)
    chosen = order[:, :most].clone()
    for row, count in enumerate(counts):
        if count > most:
            spaced = torch.linspace(0, count - 1, most, device=valid.device).round().long()
            chosen[row] = order[row, spaced]
    return chosen
