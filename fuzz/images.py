"""Image files with bytes, lengths, sizes and structure changed; arrays, PIL images and texts that name no file."""

import hashlib
import io
import random
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.harness import Fuzzer, main
from lorax_vlm.data.images import ImageLimits, content_digest, decode_image, load_image

_EXTREMES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_OPTIONS: dict[str, tuple[dict[str, object], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"subsampling": 0, "quality": 90}, {"restart_marker_blocks": 1}),
    "PNG": ({}, {"bits": 4}, {"transparency": 1}),
    "GIF": ({}, {"transparency": 2}, {"interlace": 0}),
    "WEBP": ({}, {"lossless": True}),
    "AVIF": ({"speed": 10}, {"speed": 10, "subsampling": "4:4:4"}),
    "BMP": ({},),
    "PPM": ({},),
    "TIFF": tuple({"compression": name} for name in ("raw", "tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4")),
}
_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F")


@lru_cache(maxsize=1)
def sound_files() -> tuple[bytes, ...]:
    """Files of all formats, in all modes that they have."""
    values = np.random.default_rng(0).integers(0, 256, (13, 18, 4), dtype=np.uint8)
    picture = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for mode in _MODES:
        deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode)
        image = picture.convert(mode) if deep is None else Image.fromarray(values[..., 0].astype(deep))
        for kind, ways in _OPTIONS.items():
            for options in ways:
                data = _encoded(image, kind, {**options, "exif": exif} if mode == "RGB" else options)
                if data:
                    found.append(data)
    frames = [picture.convert("RGB").rotate(90 * turn) for turn in range(3)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        found.append(_encoded(frames[0], kind, {"save_all": True, "append_images": frames[1:]}))
    return tuple(found)


def _encoded(image: Image.Image, kind: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError, TypeError, KeyError):  # not every format has every mode
        return b""
    return buffer.getvalue()


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def _flip_head(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        data[rng.randrange(min(len(data), 64))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 2, 4, 12, 64))]


def _repeat(rng: random.Random, data: bytearray) -> None:
    start, length = rng.randrange(len(data)), rng.choice((1, 2, 12, 20, 100, 400))
    data[start:start] = data[start : start + length] * rng.choice((1, 3, 50, 300))


def _number(rng: random.Random, data: bytearray) -> None:
    """A length, a size, an offset or a count, most likely."""
    width, order = rng.choice(((2, "big"), (2, "little"), (4, "big"), (4, "little"), (3, "little")))
    place = rng.randrange(max(1, min(len(data), rng.choice((64, 400, 10_000))) - width))
    value = rng.choice((*_EXTREMES, rng.randrange(1 << 16), len(data))) & ((1 << 8 * width) - 1)
    data[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(sound_files())
    start, from_ = rng.randrange(len(data)), rng.randrange(len(other))
    data[start : start + rng.choice((0, 8, 100))] = other[from_ : from_ + rng.choice((8, 100, 1000))]


def _exif(rng: random.Random, data: bytearray) -> None:
    """A segment of EXIF behind a JPEG's first bytes, a chunk of it behind a PNG's header."""
    order = rng.choice(("<", ">"))
    entries = b"".join(
        struct.pack(f"{order}HHII", rng.choice((0x0112, 0x8769, rng.randrange(1 << 16))), rng.randrange(20), *pair)
        for pair in ((rng.choice(_EXTREMES), rng.choice(_EXTREMES)) for _ in range(rng.randrange(60)))
    )
    body = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries) // 12) + entries
    if data[:2] == b"\xff\xd8":
        data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body
    elif data[:4] == b"\x89PNG":
        chunk = rng.choice((b"eXIf", b"iCCP", b"zTXt", b"tRNS", b"sBIT", b"acTL", b"fcTL", b"IDAT", b"IHDR")) + body
        data[33:33] = struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))


def _png_size(rng: random.Random, data: bytearray) -> None:
    """Another header, with the checksum that belongs to it."""
    if data[:4] != b"\x89PNG" or len(data) < 33:
        return
    sizes = (rng.choice((1, 18, 5000, 1 << 16, *_EXTREMES)), rng.choice((1, 13, 5000, 1 << 16, *_EXTREMES)))
    kind = (rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.randrange(2))
    data[16:29] = struct.pack(">IIBBBBB", *sizes, *kind)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))


_CHANGES: tuple[Callable[[random.Random, bytearray], None], ...] = (
    *(_flip, _flip, _flip_head, _cut, _drop, _repeat, _number, _number, _number, _splice, _exif, _png_size),
)


def _changed(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(sound_files()))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        if data:
            rng.choice(_CHANGES)(rng, data)
    return bytes(data)


def _source(rng: random.Random, folder: Path) -> object:
    """Mostly a file, as bytes or by its path; sometimes an array, a PIL image, or a text that is no path."""
    way = rng.randrange(12)
    if way == 0:
        shape = tuple(rng.choice((0, 1, 2, 3, 4, 9)) for _ in range(rng.choice((1, 2, 3, 3, 4))))
        kind = rng.choice(("u1", "<u2", ">u2", "f4", "f2", "?", "i4", "i8", "S3", "O", "c8"))
        return np.resize(np.array([0, 1, 0.5, 300, -1]).astype(kind), shape)
    if way == 1:
        text = "".join(
            chr(rng.choice((0, 46, 47, 58, 91, 126, 0xD83D, 0x202E, rng.randrange(1, 0x3000)))) for _ in range(9)
        )
        return rng.choice((text, f"~{text}/a", f"{folder}/{text}", text * 600, f"{folder}", "/dev/zero", "/dev/stdin"))
    data = _changed(rng)
    if way == 2:
        path = folder / "image"
        path.write_bytes(data)
        return rng.choice((path, str(path)))
    if way == 3 and data:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return Image.open(io.BytesIO(data))  # opened by somebody else, not decoded yet
            except Exception:
                return data
    return data


def attempt(rng: random.Random, folder: Path) -> None:
    """Read one; what comes of it keeps its promises."""
    source = _source(rng, folder)
    limits = rng.choice((ImageLimits(), ImageLimits(max_pixels=100), ImageLimits(max_memory_bytes=2**20)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if isinstance(source, Image.Image) else "error")
        image = load_image(source, limits)  # type: ignore[arg-type]
        assert type(image) is Image.Image, type(image)
        assert image.mode == "RGB", image.mode
        assert 0 < image.width * image.height <= limits.max_pixels, image.size
        seen = _digest(image)
        image.paste((1, 2, 3), (0, 0, *image.size))
        del image  # one picture at a time, for memory is measured
        if isinstance(source, bytes):
            assert _digest(decode_image(source, limits=limits)) == seen
        if not isinstance(source, Image.Image):
            assert len(content_digest(source)) == 64  # type: ignore[arg-type]
            again = _digest(load_image(source, limits))  # type: ignore[arg-type]
            assert again == seen, "it shares its memory"


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


FUZZER = Fuzzer("images", attempt)

if __name__ == "__main__":
    sys.exit(main(FUZZER))
