"""PNG: the decoder gets the picture alone, and a picture too large for memory in strips. No torch.

Left out are texts, profiles and animations: what they unpack to, and how many there are, is their writer's choice.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image, PngImagePlugin

from lorax_vlm.data.image_exif import orientation_of
from lorax_vlm.data.image_jpeg import MAX_PARTS
from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.data.image_pixels import (
    STRIP_PIXELS,
    Bands,
    Decoded,
    Deep,
    Picture,
    bytes_of,
    pairs_of,
    rows_of,
    sum_of,
    uses_lower_bits,
    whole,
)
from lorax_vlm.errors import ImageError

MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced picture: first column and row, and their steps."""
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}


@dataclass
class _Chunks:
    """The parts of a file that make its picture."""

    header: bytes = b""
    palette: list[bytes] = field(default_factory=list)
    """PLTE and tRNS, whole."""
    transparent: bytes = b""
    image: list[memoryview] = field(default_factory=list)
    bits: int = 0
    """That its samples were made from, as it says; 0 if it does not."""
    orientation: int = 1


def open_png(data: bytes, name: str, limits: ImageLimits) -> Picture:
    """Look at a PNG.

    Raises:
        ImageError: It is damaged.
    """
    chunks = _read(data, name)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks.header)
    if colour not in _CHANNELS:
        raise ImageError(name, f"its data are damaged: PNG knows no colour type {colour}.")
    mode = {_GREY: "I;16" if depth == 16 else "L", _PALETTE: "P"}.get(colour, "RGBA")
    twice = depth == 16 and colour in (_RGB, _RGB_ALPHA)  # for the upper and the lower eight bits
    if colour == _PALETTE and not any(chunk[4:8] == b"PLTE" for chunk in chunks.palette):
        raise ImageError(name, "its data are damaged: it has no palette.")
    size, channels = width * height, _CHANNELS[colour]

    def in_strips(factor: int) -> bool:
        fits = bytes_of(mode, size) * (1 + 1 / factor**2) <= limits.max_memory_bytes
        return not fits and depth == 8 and channels > 1 and not interlaced

    def kept(factor: int) -> int:
        strips = 24 * max(STRIP_PIXELS, width * factor)
        return strips if in_strips(factor) else bytes_of(mode, size) * (2 if twice else 1)

    def decode(factor: int) -> tuple[Decoded, tuple[int, int]]:
        if in_strips(factor):
            return _strips(chunks, width, height, channels), (width, height)
        image = _opened(_file(chunks.header, chunks, chunks.image))
        image.load()
        _require_rows(chunks, image, name)
        if depth == 16:
            return _deep(image, chunks, colour), (width, height)
        if depth < 8 and colour == _GREY and isinstance(image.info.get("transparency"), int) and image.mode == "L":
            # Pillow scales the pixels to 8 bits, but not the value that is transparent.
            image.info["transparency"] = image.info["transparency"] * 255 // ((1 << depth) - 1)
        return whole(image)

    return Picture((width, height), decode, kept, kept, chunks.orientation)


def _require_rows(chunks: _Chunks, image: Image.Image, name: str) -> None:
    """Raise ``ImageError`` where the data end, though soundly, before the picture, whose rest stays black."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks.header)
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not interlaced and last.getbbox(alpha_only=False) is not None:
        return
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    bits = depth * _CHANNELS[colour]
    wanted = sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns > 0)
    there = sum(map(len, _inflated(chunks.image, 2**20)))
    if there < wanted:
        raise ImageError(name, f"its data are truncated: {there:,} of {wanted:,} bytes of its rows are there.")


def _read(data: bytes, name: str) -> _Chunks:
    chunks, view, position = _Chunks(), memoryview(data), len(MAGIC)
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if kind == b"IEND":
            break
        if end > len(data):
            raise ImageError(name, "its data are damaged or truncated: a PNG chunk leads out of the file.")
        if kind == b"IHDR" and not chunks.header and length == 13:
            chunks.header = data[start:end]
            if data[end : end + 4] != zlib.crc32(data[position + 4 : end]).to_bytes(4, "big"):
                raise ImageError(name, "its data are damaged: the header's checksum is wrong.")
        elif kind == b"IDAT":
            chunks.image.append(view[start:end])
        elif not chunks.image:
            _read_other(chunks, kind, view[start:end], data[position : end + 4])
        elif kind == b"eXIf" and length <= 2**20:  # it may stand behind the picture
            chunks.orientation = orientation_of(data[start:end])
        position = end + 4
    else:
        raise ImageError(name, f"its data are damaged: it is cut into more than {MAX_PARTS:,} chunks.")
    if not chunks.header or not chunks.image:
        raise ImageError(name, "its data are damaged or truncated: it ends before the picture.")
    return chunks


def _read_other(chunks: _Chunks, kind: bytes, body: memoryview, all_of_it: bytes) -> None:
    if kind in (b"PLTE", b"tRNS") and len(body) <= 768 and len(chunks.palette) < 2:
        chunks.palette.append(all_of_it)
        if kind == b"tRNS":
            chunks.transparent = bytes(body)
    elif kind == b"sBIT" and len(body):
        chunks.bits = max(body)
    elif kind == b"eXIf" and len(body) <= 2**20:
        chunks.orientation = orientation_of(bytes(body))


def _file(header: bytes, chunks: _Chunks, image: list[memoryview] | list[bytes]) -> io.BytesIO:
    parts: list[bytes | memoryview] = [MAGIC, _chunk(b"IHDR", header), *chunks.palette]
    parts += [struct.pack(">I4s", sum(len(part) for part in image), b"IDAT"), *image, b"\0\0\0\0", _chunk(b"IEND", b"")]
    return io.BytesIO(b"".join(parts))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))


def _opened(file: io.BytesIO, rawmode: str | None = None) -> Image.Image:
    image = PngImagePlugin.PngImageFile(file)
    if rawmode is not None:
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    return image


def _strips(chunks: _Chunks, width: int, height: int, channels: int) -> Bands:
    """Decode strip by strip: each as a small PNG of its own, below the row before it."""
    kind = chunks.header[8:]

    def strips(rows: int) -> Iterator[Image.Image]:
        above, flow = bytes(width * channels), _inflated(chunks.image, rows * (1 + width * channels))
        for top in range(0, height, rows):
            count = min(rows, height - top)
            filtered = next(flow, b"")
            if len(filtered) < count * (1 + width * channels):
                raise EOFError("the picture ends early")
            header = struct.pack(">II", width, count + 1) + kind
            # Rows refer to the row above, which goes first: unfiltered, as type 0 says.
            stored = zlib.compress(b"\0" + above + filtered[: count * (1 + width * channels)], 0)
            piece = _opened(_file(header, chunks, [stored]))
            last = Image.new(piece.mode, (width, 1), None)  # pasted over, as the strip is
            last.paste(piece, (0, -count))
            above = last.tobytes()
            strip = Image.new(piece.mode, (width, count), None)
            strip.paste(piece, (0, -1))
            strip.info = piece.info
            yield strip

    return strips


def _inflated(parts: list[memoryview], size: int) -> Iterator[bytes]:
    """The rows, in portions of ``size`` bytes; the last may be shorter."""
    inflate, portion = zlib.decompressobj(), bytearray()
    for part in parts:
        waiting: bytes | memoryview = part
        while waiting and not inflate.eof:
            portion += inflate.decompress(waiting, size - len(portion))
            waiting = inflate.unconsumed_tail
            if len(portion) == size:
                yield bytes(portion)
                portion.clear()
    if portion:
        yield bytes(portion)


def _deep(image: Image.Image, chunks: _Chunks, colour: int) -> Decoded:
    """All 16 bits. Pillow keeps the upper eight of colours, which are black when the lower ones are used."""
    key = chunks.transparent[: {_RGB: 6, _GREY: 2}.get(colour, 0)]
    hidden = struct.unpack(f">{len(key) // 2}H", key[: len(key) // 2 * 2]) or None
    # A file that is scaled to 16 bits, as the format wants, says how many it was made from, too.
    declared = ((0.0, float((1 << chunks.bits) - 1)), (0.0, 65535.0)) if 8 <= chunks.bits <= 16 else ()
    if colour == _GREY_ALPHA:
        image = _opened(_file(chunks.header, chunks, chunks.image), "RGBA")
        image.load()
        return Deep(pairs_of(image), declared)
    image.load()
    if colour == _GREY:
        return Deep(rows_of(image), declared, transparent=hidden)
    if hidden is None and not uses_lower_bits(image):
        return image
    lower = _opened(_file(chunks.header, chunks, chunks.image), f"{image.mode};16L")
    lower.load()
    return Deep(sum_of(image, lower), declared, transparent=hidden)
