"""Decoded pictures of every mode to RGB, strip by strip: a picture and its copy never fill memory together. No torch.

"Right" means: transparent parts over white instead of whatever colour hides beneath them, and more than 8 bits as they
look. The libraries' own conversions do neither.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.errors import ImageError

STRIP_PIXELS = 1 << 20
"""That are looked at together."""
_CHANNEL_BYTES = 4
"""Of a pixel in Pillow, whatever channels it has, but for those of ``_SMALL``."""
_SMALL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
_SIXTEEN = 65535
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Bands = Callable[[int], Iterator[Image.Image]]
"""Strips from top to bottom, of at most so many rows, in any mode with 8 bits."""


@dataclass(frozen=True)
class Deep:
    """A picture with more than 8 bits a channel."""

    rows: Callable[[int, int], np.ndarray]
    """Values of the rows from the first number up to the second: ``(N, W)``, ``(N, W, 3)`` or ``(N, W, 4)``."""
    declared: tuple[tuple[float, float], ...] = ()
    """What black and white are, as the file says; the first pair counts that no value exceeds."""
    inverted: bool = False
    """White is the smallest value."""
    transparent: tuple[int, ...] | None = None
    """A value of a pixel that is not to be seen."""


Decoded = Image.Image | Deep | Bands


@dataclass(frozen=True)
class Picture:
    """A picture that is not decoded yet."""

    size: tuple[int, int]
    """Width and height, before it is turned."""
    decode: Callable[[int], tuple[Decoded, tuple[int, int]]]
    """Decode it, shrunk by that factor where the format can; with the size that came of it."""
    memory: Callable[[int], int]
    """Bytes that this takes at most, what is decoded included."""
    kept: Callable[[int], int]
    """Bytes of what is decoded."""
    orientation: int = 1
    """EXIF's number, 1 to 8."""


def to_rgb(picture: Picture, name: str, limits: ImageLimits) -> Image.Image:
    """Decode a picture within the limits.

    Raises:
        ImageError: It exceeds them.
    """
    require_size(picture.size, name, limits)
    width, height = picture.size
    factor = _factor(picture.size, limits.max_pixels)
    result = _CHANNEL_BYTES * -(-width // factor) * -(-height // factor)
    needed = max(picture.memory(factor), picture.kept(factor) + result, 2 * result if picture.orientation > 1 else 0)
    require_memory(picture.size, needed, name, limits)
    image = _stacked(picture, factor, name, limits.max_pixels)
    turn = _TURNS.get(picture.orientation)
    return image if turn is None else image.transpose(turn)


def require_size(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    """Raise ``ImageError`` for a picture without pixels, or with too many."""
    width, height = size
    if width <= 0 or height <= 0:
        raise ImageError(name, f"it has no pixels ({width}x{height}).")
    if width * height > limits.max_source_pixels:
        most = f"{limits.max_source_pixels:,} (ImageLimits.max_source_pixels)"
        raise ImageError(name, f"{width}x{height} pixels exceed the limit of {most}.")


def require_memory(size: tuple[int, int], needed: int, name: str, limits: ImageLimits) -> None:
    """Raise ``ImageError`` when decoding would take more memory than allowed."""
    if needed > limits.max_memory_bytes:
        raise ImageError(
            name,
            f"decoding its {size[0]}x{size[1]} pixels would take {needed / 2**20:,.0f} MiB of memory, the limit is "
            f"{limits.max_memory_bytes / 2**20:,.0f} MiB. Save it smaller or as a JPEG that is not progressive, "
            "or raise ImageLimits.max_memory_bytes.",
        )


def bytes_of(mode: str, pixels: int) -> int:
    """Memory of so many pixels in Pillow."""
    return _SMALL.get(mode, _CHANNEL_BYTES) * pixels


def whole(image: Image.Image) -> tuple[Decoded, tuple[int, int]]:
    """An image as what is decoded: with more than 8 bits to be scaled."""
    if image.mode.startswith("I") or image.mode == "F":
        return Deep(rows_of(image)), image.size
    return (image.convert("RGBA") if image.mode == "PA" else image), image.size


def rows_of(image: Image.Image) -> Callable[[int, int], np.ndarray]:
    """The values of an image with one channel."""
    return lambda top, bottom: np.asarray(_band(image, top, bottom))


def pairs_of(image: Image.Image) -> Callable[[int, int], np.ndarray]:
    """Grey and opacity of 16 bits from an image whose four channels are their bytes."""

    def read(top: int, bottom: int) -> np.ndarray:
        pairs = np.asarray(_band(image, top, bottom)).view(">u2").astype(np.uint16)
        return pairs[..., [0, 0, 0, 1]]

    return read


def sum_of(upper: Image.Image, lower: Image.Image) -> Callable[[int, int], np.ndarray]:
    """Channels of 16 bits from an image of their upper and one of their lower bytes."""

    def read(top: int, bottom: int) -> np.ndarray:
        high = np.asarray(_band(upper, top, bottom)).astype(np.uint16)
        return high << 8 | np.asarray(_band(lower, top, bottom))

    return read


def uses_lower_bits(upper: Image.Image) -> bool:
    """Whether colours of 16 bits, of which these are the upper bytes, may use only the lower ones of them."""
    return all(high < 128 for _, high in upper.getextrema()[:3])  # type: ignore[misc]


def _factor(size: tuple[int, int], pixels: int) -> int:
    """The smallest by which a picture must be shrunk to have no more pixels."""

    def fits(factor: int) -> bool:
        return -(-size[0] // factor) * -(-size[1] // factor) <= pixels

    return 1 + bisect_left(range(1, max(size)), True, key=fits)


def _stacked(picture: Picture, factor: int, name: str, pixels: int) -> Image.Image:
    decoded, (width, height) = picture.decode(factor)
    factor = _factor((width, height), pixels)  # a JPEG has been shrunk already
    rows = max(1, STRIP_PIXELS // width // factor) * factor
    if isinstance(decoded, Image.Image):
        strips = _flat_strips(decoded, rows)
    elif isinstance(decoded, Deep):
        strips = _deep_strips(decoded, height, rows, name)
    else:
        strips = (_flat(strip) for strip in decoded(rows))
    if factor == 1 and rows >= height:
        strip = next(iter(strips))
        return strip if strip.mode == "RGB" else strip.convert("RGB")
    target, top = Image.new("RGB", (-(-width // factor), -(-height // factor))), 0
    for strip in strips:
        part = strip.reduce(factor) if factor > 1 else strip  # grey is made RGB when there is less of it
        target.paste(part, (0, top))
        top += part.height
    return target


def _band(image: Image.Image, top: int, bottom: int) -> Image.Image:
    if top == 0 and bottom >= image.height:
        return image
    # Not crop(), which measures it by Image.MAX_IMAGE_PIXELS, that anybody may have set.
    band = Image.new(image.mode, (image.width, min(bottom, image.height) - top), None)  # all of it is pasted over
    band.paste(image, (0, -top))
    return band


def _flat_strips(image: Image.Image, rows: int) -> Iterator[Image.Image]:
    transparent = image.info.get("transparency")
    colours = _colours(image, transparent) if image.mode == "P" else None
    for top in range(0, image.height, rows):
        band = _band(image, top, top + rows)
        yield _flat(band, transparent) if colours is None else Image.fromarray(colours[np.asarray(band)])


def _colours(image: Image.Image, transparent: Any) -> np.ndarray:
    """The palette over white, ``(256, 3)``."""
    table = np.zeros((256, 4), np.uint8)
    table[:, 3] = 255
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    table[: len(palette), :3] = palette
    if image.palette is not None and image.palette.mode.endswith("A"):
        alpha = (image.getpalette("RGBA") or [])[3::4][:256]
        table[: len(alpha), 3] = alpha
    if isinstance(transparent, bytes):
        table[: len(transparent[:256]), 3] = list(transparent[:256])
    elif isinstance(transparent, int) and 0 <= transparent < 256:
        table[transparent, 3] = 0
    return np.asarray(_over_white(Image.fromarray(table[None]))).reshape(256, 3)


def _flat(band: Image.Image, transparent: Any = None) -> Image.Image:
    """RGB that shares no memory with ``band``."""
    if band.mode in ("La", "RGBa"):
        band = band.convert(band.mode[:-1] + "A")
    if band.mode in ("LA", "RGBA"):
        return _over_white(band.convert("RGBA"))
    if band.mode == "1":
        band = band.convert("L")
    if band.mode == "L" and isinstance(transparent, int):
        band = band.point([255 if value == transparent else value for value in range(256)])
    if band.mode == "RGB" and isinstance(transparent, tuple) and len(transparent) == 3:
        values = np.array(band)
        values[(values == np.array(transparent)).all(axis=2)] = 255
        return Image.fromarray(values)
    return band.convert("RGB")


def _over_white(layered: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _deep_strips(deep: Deep, height: int, rows: int, name: str) -> Iterator[Image.Image]:
    bounds = [(top, min(top + rows, height)) for top in range(0, height, rows)]
    black, white, opaque = _range(deep, bounds, name)
    table = None
    for top, bottom in bounds:
        values = deep.rows(top, bottom)
        if table is None and values.dtype.kind in "iu" and black >= 0 and white <= _SIXTEEN:
            table = _shown(np.arange(_SIXTEEN + 1), black, white)
        colours = values[..., :3] if values.ndim == 3 else values
        shown = _shown(colours, black, white) if table is None else table[colours]
        if deep.inverted:
            shown = 255 - shown
        if deep.transparent is not None:
            hidden = colours == np.array(deep.transparent)
            shown[hidden.all(axis=2) if hidden.ndim == 3 else hidden] = 255
        if values.ndim == 3 and values.shape[2] == 4:
            shown = np.dstack([shown, _shown(values[..., 3], 0, opaque)])
        strip = Image.fromarray(shown)
        yield strip if strip.mode == "L" else _flat(strip)


def _range(deep: Deep, bounds: list[tuple[int, int]], name: str) -> tuple[float, float, float]:
    """Which values are black, white, and opaque."""
    lows, highs, alphas, steps = [], [], [0.0], {256, 257}
    kind = "f"
    for top, bottom in bounds:
        values = deep.rows(top, bottom)
        colours, kind = values[..., :3] if values.ndim == 3 else values, values.dtype.kind
        lows.append(float(colours.min()))
        highs.append(float(colours.max()))
        if values.ndim == 3 and values.shape[2] == 4:
            alphas.append(float(values[..., 3].max()))
        if values.dtype.itemsize > 1 and kind in "iu" and highs[-1] <= _SIXTEEN // 2:
            lower = colours & 0xFF  # 0 in multiples of 256, in those of 257 what is above it; far faster than %
            if lower.any():
                steps.discard(256)
            if (lower != colours >> 8).any():
                steps.discard(257)
    low, high, alpha = min(lows), max(highs), max(alphas)
    if not np.isfinite([*lows, *highs, *alphas]).all():
        raise ImageError(name, "it contains NaN or infinite values.")
    guess = (0.0, 1.0 if kind == "f" else white_level(high, steps))
    black, white = next((pair for pair in deep.declared if pair[0] <= low <= high <= pair[1] > pair[0]), guess)
    if low < black or high > white:
        raise ImageError(name, f"its values run from {low:g} to {high:g}; expected {black:g} to {white:g}.")
    return black, white, white if alpha <= white else float(_SIXTEEN)


def white_level(highest: float, steps: set[int]) -> float:
    """The value that is white in a picture of whole numbers that does not say how many bits it uses.

    Detectors and microscopes write 10, 12, 14 or 15 bits into 16 as they are. Scaled as 16 bits such a picture is
    nearly black, so the fewest of these bits that hold its highest value are taken. Never fewer than 10: what uses
    8 bits of 16 or fewer is a dark picture, and noise must not become its contents. Values that all are multiples of
    256 or 257 were made from 8 bits by scaling to 16, so they are 16, however dark.

    >>> [white_level(value, set()) for value in (12, 4080, 30_000, 40_000)]
    [1023.0, 4095.0, 32767.0, 65535.0]
    """
    scaled_up = 257 in steps or (256 in steps and highest > 4095)
    if not scaled_up:
        for bits in (10, 12, 14, 15):
            if highest < 1 << bits:
                return float((1 << bits) - 1)
    return float(_SIXTEEN)


def _shown(values: np.ndarray, black: float, white: float) -> np.ndarray:
    scaled = (values - np.float64(black)) * (255.0 / (white - black))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
