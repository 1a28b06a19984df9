"""Image files for tests: encoded by Pillow, or built byte by byte where Pillow would not write them."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageOps


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    """A file of an image."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """With its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *others: bytes, interlaced: int = 0) -> bytes:
    """A PNG of filtered rows, with other chunks before the picture."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [png_chunk(b"IHDR", header), *others, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(entries: Iterable[tuple[int, int, int | tuple[int, ...]]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF with one directory behind its one strip, which begins at byte 8.

    Args:
        entries: Tag, type (3: two bytes, 4: four bytes), and one value or several.
        pixels: The strip.
        order: ``<`` or ``>``.
    """
    place = 8 + len(pixels) + len(pixels) % 2
    rows, behind = [], b""
    entries = [*entries, (273, 4, 8), (279, 4, len(pixels))]
    far = place + 2 + 12 * len(entries) + 4
    for tag, kind, value in sorted(entries):
        values = value if isinstance(value, tuple) else (value,)
        field = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(field) > 4:
            behind += field
            field = struct.pack(f"{order}I", far + len(behind) - len(field))
        rows.append(struct.pack(f"{order}HHI", tag, kind, len(values)) + field.ljust(4, b"\0"))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    count = struct.pack(f"{order}H", len(rows))
    return head + pixels + bytes(len(pixels) % 2) + count + b"".join(rows) + bytes(4) + behind


def exif(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """EXIF with one directory: tag, type, number of values, and value or place."""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    rows = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in entries
    )
    return head + rows + bytes(4)


def with_exif(jpeg: bytes, written: bytes) -> bytes:
    """A JPEG with such EXIF."""
    body = b"Exif\0\0" + written
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def as_pillow_reads_it(data: bytes) -> Image.Image:
    """RGB by Pillow's own conversions, for 8 bits: turned, and over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def unseen_lines(count: int) -> list[tuple[Image.Image, str]]:
    """Faint lines, each with whether it is the longer kind (yes, no): too small a thing for the miniatures' eyes."""
    rng, drawn = np.random.default_rng(1), []
    for _ in range(count):
        long = bool(rng.integers(2))
        image = Image.new("RGB", (224, 224), "white")
        start = rng.integers(20, 200, 2)
        ImageDraw.Draw(image).line([tuple(start), tuple(start + 2 + 2 * long)], fill=(230, 230, 230), width=1)
        drawn.append((image, "yes" if long else "no"))
    return drawn
