"""What an image may cost, and values of more than 8 bits as they look."""

import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.data.images import content_digest, load_image
from lorax_vlm.errors import ImageError
from tests.images_for_tests import encode, png, png_chunk

# --- 10, 12, 14, 15 bits in 16 ----------------------------------------------------------------------------------------


def grey16(values: np.ndarray, kind: str, *chunks: bytes) -> bytes:
    """A file of ``(H, W)`` values of 16 bits."""
    if kind == "png":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        return png(values.shape[1], values.shape[0], 16, 0, rows, *chunks)
    if kind == "rgb png":
        rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in values)
        return png(values.shape[1], values.shape[0], 16, 2, rows, *chunks)
    if kind == "pgm":
        return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()
    return encode(Image.fromarray(values.astype(np.uint16)), "TIFF")


def ramp(bits: int, part: float = 1.0) -> np.ndarray:
    """Every shade from black to a part of white, ``(16, 64)``."""
    return np.linspace(0, part * ((1 << bits) - 1), 16 * 64).round().astype(np.uint16).reshape(16, 64)


@pytest.mark.parametrize("kind", ["png", "rgb png", "pgm", "tiff", "array"])
@pytest.mark.parametrize("bits", [10, 12, 14, 15, 16])
def test_fewer_bits_than_sixteen_look_as_they_are(bits: int, kind: str) -> None:
    """White is 255 and the middle is grey, however many of the sixteen bits are used."""
    values = ramp(bits)
    shown = np.asarray(load_image(values if kind == "array" else grey16(values, kind)))
    wanted = np.round(values / ((1 << bits) - 1) * 255)
    assert np.abs(shown[..., 0] - wanted).max() <= 1
    assert (shown == shown[..., :1]).all()


@pytest.mark.parametrize("step", [256, 257])
def test_eight_bits_scaled_to_sixteen_stay_as_dark_as_they_are(step: int) -> None:
    """A dark photograph of 8 bits, saved as 16: not made brighter."""
    dark = (np.arange(1024, dtype=np.uint16) % 60).reshape(16, 64)
    shown = np.asarray(load_image(grey16(dark * step, "png")))
    assert np.abs(shown[..., 0].astype(int) - dark).max() <= 1


def test_what_a_file_says_of_its_bits_counts() -> None:
    """Half as bright as 12 bits allow: by itself it would be taken for 11 bits or fewer."""
    half = ramp(12, 0.2)
    said = grey16(half, "png", png_chunk(b"sBIT", bytes([12])))
    assert np.asarray(load_image(said)).max() == pytest.approx(51, abs=1)
    assert np.asarray(load_image(grey16(half, "png"))).max() > 150


def test_noise_is_not_made_a_picture() -> None:
    assert np.asarray(load_image(grey16(np.full((8, 8), 3, np.uint16), "png"))).max() <= 1


# --- time -------------------------------------------------------------------------------------------------------------


def with_more_scans(count: int, size: tuple[int, int] = (256, 256)) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each makes the decoder go through all of it."""
    data = encode(Image.new("L", size, 128), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]


def test_scans_of_a_progressive_jpeg_are_counted() -> None:
    assert load_image(with_more_scans(0)).size == (256, 256)
    with pytest.raises(ImageError, match=r"a JPEG with 2\d\d scans of 256x256 pixels is made to keep decoders busy"):
        load_image(with_more_scans(200))
    with pytest.raises(ImageError, match="made to keep decoders busy"):  # few, but each of very many blocks
        load_image(with_more_scans(80, (12_000, 12_000)))


# --- memory -----------------------------------------------------------------------------------------------------------


def empty_png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """Many black pixels in few bytes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = zlib.compressobj(9)
    row = bytes(1 + -(-width * channels * depth // 8))
    body = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    whole = png(width, height, depth, colour, b"", *chunks)
    return whole.replace(png_chunk(b"IDAT", zlib.compress(b"")), png_chunk(b"IDAT", body))


def file_of(name: str) -> bytes:
    """A file of few bytes and very many pixels."""
    if name == "gif":
        return encode(Image.new("P", (8000, 8000)), "GIF", transparency=0)
    depth, colour = {"png with transparency": (8, 4), "png of 16 bits": (16, 0)}[name]
    return empty_png(8000, 8000, depth=depth, colour=colour)


NAMES = ("gif", "png with transparency", "png of 16 bits")
MEASURE = """
import os, resource, sys
from lorax_vlm.data.images import ImageError, load_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            said = f"{load_image(path).mode}"
        except ImageError as error:
            said = "refused" if "would take" in str(error) else "failed"
        print(said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_memory_is_bounded_before_decoding(tmp_path: Path) -> None:
    """Sixty-four megapixels in files of at most 200 kB: never more than the limit of 768 MiB."""
    for name in NAMES:
        (tmp_path / name).write_bytes(file_of(name))
        assert (tmp_path / name).stat().st_size < 200_000
    paths = [str(tmp_path / name) for name in NAMES]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    lines = dict(zip(NAMES, map(str.split, done.stdout.splitlines()), strict=True))
    assert {name: said for name, (said, _) in lines.items()} == dict.fromkeys(NAMES, "RGB")
    assert all(int(taken) < 768 for _, taken in lines.values()), lines


@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (16_320, 12_240)])
def test_photographs_of_phones_are_shrunk_while_they_are_decoded(width: int, height: int) -> None:
    """108 and 200 megapixels: read, with half as many pixels each way, right side up, and as bright as they are."""
    large = Image.new("L", (width, height), 200)
    large.paste(40, (0, 0, width // 2, height // 2))
    shown = load_image(encode(large, "JPEG"))
    assert shown.width * shown.height <= ImageLimits().max_pixels
    assert shown.width / shown.height == pytest.approx(width / height, rel=1e-3)
    corners = [shown.getpixel(place)[0] for place in ((9, 9), (shown.width - 9, 9), (9, shown.height - 9))]  # type: ignore[index]
    assert corners == pytest.approx([40, 200, 200], abs=2)


def test_more_pixels_than_any_photograph_has_are_refused() -> None:
    with pytest.raises(ImageError, match=r"20000x20000 pixels exceed the limit of 210,000,000"):
        load_image(empty_png(20_000, 20_000, depth=1, colour=0))
    with pytest.raises(ImageError, match="exceed the limit"):
        load_image(np.broadcast_to(np.uint8(0), (60_000, 60_000)))  # before it is copied: 3.6 GB


# --- what is no ordinary file -----------------------------------------------------------------------------------------


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [load_image, content_digest])
def test_devices_and_pipes_are_not_read(read: Callable[[str | Path], object], pipe: Path, tmp_path: Path) -> None:
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    for path in ("/dev/zero", "/dev/null", pipe, tmp_path / "zeros.png"):
        with pytest.raises(ImageError, match="it is no ordinary file but a device, a pipe or a socket"):
            read(path)


def test_a_file_that_says_it_is_empty_is_read_to_the_limit_only() -> None:
    """Files of the system say that they have 0 bytes."""
    with pytest.raises(ImageError, match=r"more than 100 bytes|known format"):
        load_image("/proc/self/maps", ImageLimits(max_bytes=100))


def test_a_picture_in_memory_is_measured_before_it_is_decoded() -> None:
    opened = Image.open(io.BytesIO(encode(Image.new("1", (10_000, 8000)), "PNG")))
    with pytest.raises(ImageError, match="exceed the limit"):
        load_image(opened, ImageLimits(max_source_pixels=10**7))
