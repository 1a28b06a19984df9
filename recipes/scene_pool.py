"""Scenes rendered once and kept as small pixel arrays, with the ground truth the first two stages learn from."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BlipImageProcessorPil

from lorax_vlm.data.scenes import Scene, make_scene, split_seeds
from lorax_vlm.data.world.words import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES

# Number of classes of each thing that can be said about a place; 0 means "nothing stands here".
PLACE_CLASSES = {"color": len(COLORS) + 1, "shape": len(SHAPES) + 1, "size": len(SIZES) + 1}


@dataclass(frozen=True)
class ScenePool:
    """``N`` scenes with their pixels ``(N, 3, S, S)`` uint8 and truths."""

    scenes: list[Scene]
    pixels: Tensor
    places: Tensor
    """``(N, P, 3)``: colour, shape and size class at each of the P places."""
    backgrounds: Tensor
    """``(N,)``"""
    mean: Tensor
    std: Tensor

    def pixel_values(self, rows: Tensor) -> Tensor:
        """What the image processor would give for these scenes, ``(B, 3, S, S)`` float32."""
        return (self.pixels[rows].float() / 255 - self.mean) / self.std

    def normalised_by(self, image_processor: Any) -> "ScenePool":
        """The same pictures with another image processor's mean and deviation."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
        )
        return replace(self, mean=mean, std=std)

    def batches(self, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
        """Row indices of ``steps`` random batches."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            yield torch.randint(len(self.scenes), (batch_size,), generator=generator)


def load_pool(split: str, count: int, image_processor: BlipImageProcessorPil, cache: Path) -> ScenePool:
    """Render ``count`` scenes of a split, or read them from ``cache``."""
    side = image_processor.size["height"]
    path = cache / f"{split}-{count}-{side}.npy"
    scenes = [make_scene(seed) for seed in split_seeds(split, count)]
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor() as workers:
            arrays = workers.map(partial(_render, side=side), [scene.seed for scene in scenes], chunksize=200)
            np.save(path, np.stack(list(arrays)))
    return ScenePool(
        scenes,
        torch.from_numpy(np.load(path)),
        torch.tensor([_place_classes(scene) for scene in scenes]),
        torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes]),
        torch.tensor(image_processor.image_mean).view(3, 1, 1),
        torch.tensor(image_processor.image_std).view(3, 1, 1),
    )


def _render(seed: int, side: int) -> np.ndarray:
    resize_only = BlipImageProcessorPil(size={"height": side, "width": side}, do_rescale=False, do_normalize=False)
    pixels = resize_only(make_scene(seed).image, return_tensors="np")["pixel_values"][0]
    return pixels.astype(np.uint8)


def _place_classes(scene: Scene) -> list[list[int]]:
    classes = [[0, 0, 0] for _ in PLACES]
    for item in scene.objects:
        classes[list(PLACES).index(item.place)] = [
            1 + list(COLORS).index(item.color),
            1 + SHAPES.index(item.shape),
            1 + SIZES.index(item.size),
        ]
    return classes
