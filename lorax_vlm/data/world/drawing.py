"""Drawing of scenes: the same objects never give the same pixels twice. No torch.

Position, radius, rotation, colour, background tint, a light gradient and grain all vary with the scene's own seed.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lorax_vlm.data.world.words import BACKGROUNDS, COLORS, PLACES, SceneObject

IMAGE_SIDE_PX = 224
_SUPERSAMPLE = 2
# Fractions of the side. A corner and the centre are .27 apart along each axis, .382 diagonally; two large radii with
# their jitter stay below that.
_CELL_CENTERS = {0: 0.23, 1: 0.5, 2: 0.77}
_CENTER_JITTER = 0.022
_RADII = {"small": (0.075, 0.09), "large": (0.135, 0.155)}


def draw_scene(objects: Sequence[SceneObject], background: str, seed: int) -> Image.Image:
    """Draw a scene; equal arguments give equal pixels.

    Returns:
        An RGB image of ``IMAGE_SIDE_PX`` squared.
    """
    rng = np.random.default_rng([seed, 7])
    side = IMAGE_SIDE_PX * _SUPERSAMPLE
    canvas = Image.new("RGB", (side, side), _jitter(BACKGROUNDS[background], 12, rng))
    pen = ImageDraw.Draw(canvas)
    for item in objects:
        column, row = PLACES[item.place]
        x, y = (_CELL_CENTERS[i] + rng.uniform(-_CENTER_JITTER, _CENTER_JITTER) for i in (column, row))
        radius = rng.uniform(*_RADII[item.size])
        turn = math.radians(rng.uniform(-12, 12))
        _draw_shape(pen, item.shape, (x * side, y * side), radius * side, turn, _jitter(COLORS[item.color], 14, rng))
    pixels = np.array(canvas.reduce(_SUPERSAMPLE), dtype=np.float64)
    _light(pixels, rng)
    return Image.fromarray(pixels.astype(np.uint8))


def _jitter(color: tuple[int, int, int], spread: float, rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(channel + rng.uniform(-spread, spread), 0, 255)) for channel in color)
    return red, green, blue


def _light(pixels: np.ndarray, rng: np.random.Generator) -> None:
    """Add a linear light gradient and grain, in place."""
    ramp = np.linspace(-1, 1, IMAGE_SIDE_PX, dtype=np.float32)
    across, down = rng.uniform(-8, 8, size=2)
    pixels += across * ramp[None, :, None] + down * ramp[:, None, None]
    grain = rng.standard_normal((IMAGE_SIDE_PX, IMAGE_SIDE_PX, 1), dtype=np.float32)
    grain *= 2.0
    pixels += grain
    np.clip(pixels, 0, 255, out=pixels)


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    center: tuple[float, float],
    radius: float,
    turn: float,
    color: tuple[int, int, int],
) -> None:
    x, y = center
    if shape == "circle":
        # The same area as the other shapes have in their bounding circle would look larger; .9 evens it out.
        r = 0.9 * radius
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
        return
    angles, radii = {
        "square": ([math.pi / 4 + math.pi / 2 * k for k in range(4)], [radius] * 4),
        "triangle": ([-math.pi / 2 + 2 * math.pi / 3 * k for k in range(3)], [radius] * 3),
        "star": ([-math.pi / 2 + math.pi / 5 * k for k in range(10)], [radius, 0.42 * radius] * 5),
    }[shape]
    corners = [(x + r * math.cos(a + turn), y + r * math.sin(a + turn)) for a, r in zip(angles, radii, strict=True)]
    pen.polygon(corners, fill=color)
