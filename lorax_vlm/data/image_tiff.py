"""TIFF: the decoder gets the first picture's own entries, and nothing that a directory may say besides. No torch.

Entries of a directory may all point at the same bytes, name further directories, or ask for tiles of any size, so
what is not needed for the picture is left out, and what is needed is measured.
"""

import io
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, TiffImagePlugin

from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.data.image_pixels import Decoded, Deep, Picture, bytes_of, sum_of, uses_lower_bits, whole
from lorax_vlm.errors import ImageError

_MAX_PIECES = 200_000
"""Strips or tiles."""
_MAX_ENTRY_BYTES = 2**22
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_CHANNELS, _ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT, _FORMAT = 277, 278, 284, 322, 323, 339
_OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_LOWEST, _HIGHEST = (340, 280), (341, 281)
_COMPRESSION, _FILL = 259, 266
_SCALARS = {
    *(_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _FILL, _CHANNELS, _ROWS, _PLANES, _TILE_WIDTH, _TILE_HEIGHT),
    *(292, 293, 317, 531),  # how fax is coded, predictor, position of YCbCr samples
    *(512, 513, 514, 515),  # JPEG of before TIFF 6
}
"""Of which there is one value; where there are more, the first counts."""
_DECODED = _SCALARS | {
    *(_BITS, _OFFSETS, _COUNTS, _TILE_OFFSETS, _TILE_COUNTS, _FORMAT),
    *(320, 338, 347),  # colour map, extra channels, tables of JPEG
    *range(517, 522),  # JPEG of before TIFF 6
    *(529, 530, 532),  # YCbCr
}
_READ = _DECODED | {_ORIENTATION, *_LOWEST, *_HIGHEST}


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    field: bytes
    """As in the directory: the values, or where they are."""
    values: tuple[Any, ...]
    """None where they are no numbers."""


@dataclass(frozen=True)
class _Directory:
    order: str
    big: bool
    entries: dict[int, _Entry]

    def first(self, *tags: int, otherwise: Any = None) -> Any:
        """The first value of the first of these entries that there is."""
        found = (self.entries[tag].values for tag in tags if tag in self.entries)
        return next((values[0] for values in found if values), otherwise)


def open_tiff(data: bytes, name: str, limits: ImageLimits) -> Picture:
    """Look at a TIFF's first picture.

    Raises:
        ImageError: It is damaged, or its pieces are out of proportion.
    """
    found = _read(data, name)
    width, height = found.first(_WIDTH, otherwise=0), found.first(_HEIGHT, otherwise=0)
    bits, channels = found.first(_BITS, otherwise=1), found.first(_CHANNELS, otherwise=1)
    across = found.first(_TILE_WIDTH, otherwise=width)
    down = found.first(_TILE_HEIGHT, otherwise=min(found.first(_ROWS, otherwise=height), height))
    if found.first(_PLANES) == 2 and bits > 8 and found.first(_COMPRESSION, otherwise=1) == 1:
        raise ImageError(name, "its channels of more than 8 bits are stored one after the other, which is not read.")
    if width <= 0 or height <= 0 or width * height > limits.max_source_pixels:
        return Picture((width, height), lambda _: whole(Image.new("L", (1, 1))), lambda _: 0, lambda _: 0)  # refused
    file = _rewritten(data, found)

    def opened() -> TiffImagePlugin.TiffImageFile:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(file))
        if image.size != (width, height):
            raise ImageError(name, "its data are damaged: it has two sizes.")
        image.decodermaxblock = 2**22  # rows may be long, and each block is put behind all before it
        return image

    mode = opened().mode
    twice = mode in ("RGB", "RGBA") and bits == 16
    kept = bytes_of(mode, width * height) * (2 if twice else 1)
    piece = across * down * max(channels, 4) * -(-bits // 8)
    return Picture(
        (width, height),
        lambda _: (_decoded(opened, found, twice), (width, height)),
        lambda _: kept + 2 * piece,
        lambda _: kept,
        found.first(_ORIENTATION, otherwise=1),
    )


def _read(data: bytes, name: str) -> _Directory:
    order, big = "<" if data[:2] == b"II" else ">", 0x2B in data[2:4]
    head, row, wide = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    entries: dict[int, _Entry] = {}
    total = 0
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, wide)
    (count,) = struct.unpack_from(order + head, data, min(start, len(data)))
    step, place = struct.calcsize(order + row), start + struct.calcsize(order + head)
    if place + count * step > len(data):
        raise ImageError(name, "its data are damaged or truncated: its directory leads out of the file.")
    for at in range(place, place + count * step, step):
        tag, kind, values, field = struct.unpack_from(order + row, data, at)
        if tag not in _READ or tag in entries or kind not in _SIZES:
            continue
        size, where = values * _SIZES[kind], at + step - wide
        if size > wide:
            (where,) = struct.unpack(order + ("Q" if big else "I"), field)
            total += size
        if where + size > len(data) or total > len(data) or size > _MAX_ENTRY_BYTES:
            raise ImageError(name, f"its data are damaged or truncated: entry {tag} leads out of the file.")
        if values > _MAX_PIECES:
            raise ImageError(name, f"it is cut into {values:,} pieces, the limit is {_MAX_PIECES:,}.")
        numbers = struct.unpack_from(f"{order}{values}{_CODES[kind]}", data, where) if kind in _CODES else ()
        if tag in _SCALARS | {_BITS, _ORIENTATION} and not all(isinstance(number, int) for number in numbers):
            raise ImageError(name, f"its data are damaged: entry {tag} is no whole number.")
        entries[tag] = _Entry(kind, values, field, numbers)
    return _Directory(order, big, entries)


def _rewritten(data: bytes, found: _Directory) -> bytes:
    """The file with a directory of its own behind it, in which only that is left which the picture needs."""
    order, big = found.order, found.big
    rows = []
    for tag, entry in sorted(found.entries.items()):
        if tag not in _DECODED or not entry.count:
            continue
        kind, count, field = entry.kind, entry.count, entry.field
        if tag in _SCALARS and count > 1 and entry.values:
            kind, count = (16 if big else 4), 1
            field = struct.pack(order + ("Q" if big else "I"), entry.values[0])
        rows.append(struct.pack(order + ("HHQ8s" if big else "HHI4s"), tag, kind, count, field))
    place = len(data) + len(data) % 2
    if big:
        header = struct.pack(order + "2sHHHQ", data[:2], 43, 8, 0, place)
        directory = [struct.pack(order + "Q", len(rows)), *rows, bytes(8)]
    else:
        header = struct.pack(order + "2sHI", data[:2], 42, place)
        directory = [struct.pack(order + "H", len(rows)), *rows, bytes(4)]
    return b"".join([header, memoryview(data)[len(header) :], bytes(len(data) % 2), *directory])


def _decoded(opened: Callable[[], TiffImagePlugin.TiffImageFile], found: _Directory, twice: bool) -> Decoded:
    image = _loaded(opened())
    if twice and uses_lower_bits(image):
        lower = opened()
        raw = (lower.tile[0].args or ("",))[0]
        upside = {"16L": "16B", "16B": "16L", "16N": "16B" if sys.byteorder == "little" else "16L"}
        if raw.split(";")[0] in ("RGB", "RGBX", "RGBA") and raw[-3:] in upside:
            swapped = raw[:-3] + upside[raw[-3:]]
            lower.tile = [tile._replace(args=(swapped, *(tile.args or ())[1:])) for tile in lower.tile]
            return Deep(sum_of(image, _loaded(lower)))
    decoded, _ = whole(image)
    if not isinstance(decoded, Deep):
        return decoded
    bits, white = found.first(_BITS, otherwise=1), found.first(*_HIGHEST)
    says = [(found.first(*_LOWEST, otherwise=0), white)] if isinstance(white, int | float) else []
    if bits == 12:
        says.append((0, 4095))
    return replace(decoded, declared=tuple(says), inverted=found.first(_PHOTOMETRIC) == 0)


def _loaded(image: TiffImagePlugin.TiffImageFile) -> Image.Image:
    # With room of our own, Pillow does not measure the picture by Image.MAX_IMAGE_PIXELS, that anybody may have set.
    image.im = Image.new(image.mode, image.size).im
    image.load()
    return image
