"""Which format a file has, and how it is decoded without asking for more than it may. No torch.

Every opener looks at the structure first and hands the decoder the first picture alone. None goes through
``Image.open``, which measures pictures by a setting of the whole process.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, PpmImagePlugin

from lorax_vlm.data.image_exif import orientation_of
from lorax_vlm.data.image_jpeg import MAX_PARTS, open_jpeg
from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.data.image_pixels import Decoded, Deep, Picture, bytes_of, whole
from lorax_vlm.data.image_png import open_png
from lorax_vlm.data.image_tiff import open_tiff
from lorax_vlm.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats with a decoder in Pillow itself; PostScript and friends would call other programs."""
_SLOW_SAMPLES = 8_000_000
"""Of pictures that Pillow decodes in Python, one after the other."""
_MAX_TABLES = 256 * 1024
"""Bytes of the tables of an AVIF. The decoder's time grows with their square; real ones have a few hundred."""
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*+[\r\n])*+([-+.0-9eE]{1,20})")


def open_picture(data: bytes, name: str, limits: ImageLimits) -> Picture:
    """Look at a file.

    Raises:
        ImageError: It is damaged, or in no known format.
    """
    for starts, opener in _OPENERS:
        if starts.match(data):
            return opener(data, name, limits)
    raise ImageError(name, f"it is not an image in a known format ({', '.join(FORMATS)}).")


def _open_gif(data: bytes, name: str, limits: ImageLimits) -> Picture:
    """The first frame, with the last control block before it."""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    table, control = data[13:place], b""
    for _ in range(MAX_PARTS):
        kind = data[place : place + 1]
        if kind == b",":
            break
        if kind != b"!":
            raise ImageError(name, "its data are damaged or truncated: it ends before the picture.")
        block = place + 2
        if data[place + 1] == 0xF9 and data[block] == 4:
            # How the frame is removed is for those that follow, and would cost its size again.
            control = b"!\xf9\x04" + bytes([data[block + 1] & 0b11100011]) + data[block + 2 : block + 6]
        place = _behind_blocks(data, block, name)
    left, top, width, height = struct.unpack_from("<4H", data, place + 1)
    screen = struct.unpack_from("<2H", data, 6)
    size = max(screen[0], left + width), max(screen[1], top + height)
    if max(size) > 0xFFFF:
        raise ImageError(name, "its data are damaged: the first frame leads out of the screen.")
    header = data[:6] + struct.pack("<2H", *size) + data[10:13]

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        image = GifImagePlugin.GifImageFile(io.BytesIO(b"".join([header, table, control, memoryview(data)[place:]])))
        image.load()
        return whole(image)

    return Picture(size, decode, lambda _: 2 * size[0] * size[1], lambda _: size[0] * size[1])


def _behind_blocks(data: bytes, place: int, name: str) -> int:
    for _ in range(MAX_PARTS):
        length = data[place]
        place += 1 + length
        if not length:
            return place
    raise ImageError(name, f"its data are damaged: more than {MAX_PARTS:,} blocks before the picture.")


def _open_webp(data: bytes, name: str, limits: ImageLimits) -> Picture:
    size, orientation, place = (0, 0), 1, 12
    for _ in range(MAX_PARTS):
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        body = data[place + 8 : place + 8 + min(length, 2**20)]
        if size == (0, 0):
            size = _webp_size(kind, body)
        if kind == b"EXIF":
            orientation = orientation_of(body)
        place += 8 + length + length % 2
        if place >= len(data):
            break

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        # The plugin keeps the decoder's own two copies of the picture for as long as the image lives.
        from PIL import _webp

        decoder = _webp.WebPAnimDecoder(data)
        found, _, _, _, raw = decoder.get_info()
        frame = decoder.get_next() if found == size else None
        if frame is None:
            raise ImageError(name, "its data are damaged or truncated: the first frame cannot be decoded.")
        return Image.frombuffer(raw, size, frame[0], "raw", raw, 0, 1), size

    return Picture(size, decode, lambda _: 12 * size[0] * size[1], lambda _: 4 * size[0] * size[1], orientation)


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and body[:1] == b"\x2f":
        packed = int.from_bytes(body[1:5], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<2H", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _open_avif(data: bytes, name: str, limits: ImageLimits) -> Picture:
    tables = _table_bytes(data, 0, len(data))
    if tables > _MAX_TABLES:
        raise ImageError(name, f"its tables have {tables:,} bytes, the limit is {_MAX_TABLES:,}.")
    from PIL import _avif

    def opened() -> Any:
        return _avif.AvifDecoder(data, "auto", 1)

    size, _, mode, _, _, orientation, _ = opened().get_info()

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        pixels = opened().get_frame(0)[0]
        return whole(Image.frombuffer(mode, size, pixels, "raw", mode, 0, 1))

    # Its planes, in two bytes where they have more than 8 bits, then the picture twice, and what the decoder keeps.
    deep = any(flags[1][0] & 0x40 for flags in re.finditer(rb"av1C..(.)", data[:_MAX_TABLES], re.DOTALL))
    each = (3 + deep) * (4 if mode.endswith("A") else 3) + 1
    return Picture(size, decode, lambda _: each * size[0] * size[1], lambda _: 4 * size[0] * size[1], orientation)


def _table_bytes(data: bytes, place: int, end: int) -> int:
    """Bytes of all that describes an AVIF, without pixels and profiles."""
    total = 0
    for _ in range(MAX_PARTS):
        if place + 8 > end:
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 16 if length == 1 else 8
        length = int.from_bytes(data[place + 8 : place + 16], "big") if length == 1 else length or end - place
        stop = min(place + max(length, head), end)
        inner = {b"meta": head + 4, b"iprp": head, b"ipco": head}.get(kind)
        if inner is not None:
            total += _table_bytes(data, place + inner, stop)
        elif kind not in (b"mdat", b"idat", b"colr", b"free", b"skip"):
            total += stop - place
        place = stop
    return total


def _open_bmp(data: bytes, name: str, limits: ImageLimits) -> Picture:
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    image.decodermaxblock = 2**22  # rows may be long, and each block is put behind all before it
    pixels, by_runs = image.width * image.height, image.tile[0][0] == "bmp_rle"
    if by_runs:
        _require_few(pixels, name)

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        image.load()
        return whole(image)

    kept = bytes_of(image.mode, pixels)
    return Picture(image.size, decode, lambda _: kept + (3 * pixels if by_runs else 0), lambda _: kept)


def _open_pnm(data: bytes, name: str, limits: ImageLimits) -> Picture:
    kind, place = data[1:2], 2
    numbers: list[float] = []
    for _ in range(2 if kind in b"14" else 3):
        found = _PNM_NUMBER.match(data, place)
        if found is None:
            raise ImageError(name, "its data are damaged or truncated: it ends before the picture.")
        numbers.append(float(found[1]) if kind == b"f" and len(numbers) == 2 else int(found[1]))
        place = found.end()
    width, height, highest = (*numbers, 1)[:3]
    size, channels = (int(width), int(height)), 3 if kind in b"36" else 1
    if kind in b"56":
        return _raw_pnm(data[place + 1 :], (size[1], size[0], channels), int(highest), name)
    if kind in b"123":
        _require_few(size[0] * size[1] * channels, name)
    head = b"P%b\n%d %d\n" % (kind, *size) + (b"" if kind in b"14" else f"{highest}\n".encode())

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        image = PpmImagePlugin.PpmImageFile(io.BytesIO(head + data[place + 1 :]))
        image.decodermaxblock = 2**22
        image.load()
        return whole(image)

    return Picture(size, decode, lambda _: 8 * size[0] * size[1] * channels, lambda _: 4 * size[0] * size[1])


def _raw_pnm(body: bytes, shape: tuple[int, int, int], highest: int, name: str) -> Picture:
    """Pillow reads these value by value in Python unless the highest is 255 or 65,535."""
    if not 0 < highest < 65536:
        raise ImageError(name, f"its data are damaged: its highest value is {highest}.")
    height, width, channels = shape
    kind = np.dtype("u1") if highest < 256 else np.dtype(">u2")

    def decode(_: int) -> tuple[Decoded, tuple[int, int]]:
        values = np.frombuffer(body, kind, height * width * channels)
        values = values.reshape((height, width, 3) if channels == 3 else (height, width))
        declared = () if highest == 65535 else ((0.0, float(highest)), (0.0, 65535.0 if highest > 255 else 255.0))
        return Deep(lambda top, bottom: values[top:bottom], declared), (width, height)

    return Picture((width, height), decode, lambda _: 0, lambda _: 0)


def _require_few(samples: int, name: str) -> None:
    if samples > _SLOW_SAMPLES:
        raise ImageError(
            name,
            f"it has {samples:,} values in a form that is slow to read, the limit is {_SLOW_SAMPLES:,}. "
            "Save it as PNG.",
        )


_OPENERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes, str, ImageLimits], Picture]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), open_jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]|MM\x2a\0|II\0\x2a"), open_tiff),  # the last two are wrong, but written
    (re.compile(rb"GIF8[79]a"), _open_gif),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _open_webp),
    (re.compile(rb"....ftyp(avif|avis|mif1|msf1)", re.DOTALL), _open_avif),
    (re.compile(rb"BM"), _open_bmp),
    (re.compile(rb"P[1-6f][\s#]"), _open_pnm),
)
