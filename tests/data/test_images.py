"""Every kind of image a user may hold becomes right RGB, or an error that names it."""

import contextlib
import io
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.data.images import ImageLimits, load_image
from lorax_vlm.errors import ImageError

RED = (200, 30, 40)


def encode(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def red(width: int = 4, height: int = 2) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


# --- sources ------------------------------------------------------------------------------------------------------


def test_the_same_picture_from_every_kind_of_source(tmp_path: Path) -> None:
    data = encode(red())
    path = tmp_path / "red.png"
    path.write_bytes(data)
    sources = [path, str(path), data, bytearray(data), red(), np.asarray(red())]
    assert all(np.array_equal(np.asarray(load_image(source)), np.asarray(red())) for source in sources)


def test_the_result_is_independent_of_the_source() -> None:
    source = red()
    loaded = load_image(source)
    source.putpixel((0, 0), (0, 0, 0))
    assert pixel(loaded) == RED


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    red().save(tmp_path / "red.png")
    assert pixel(load_image("~/red.png")) == RED


# --- modes --------------------------------------------------------------------------------------------------------


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 0), (0, 0, 255)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned = load_image(encode(image, "PNG", exif=exif))
    assert turned.size == (1, 2)
    assert pixel(turned, 0, 0) == (255, 0, 0)
    assert pixel(turned, 0, 1) == (0, 0, 255)


def test_transparency_shows_white_paper_not_hidden_colours() -> None:
    hidden = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert hidden.convert("RGB").getpixel((0, 0)) == (255, 0, 0)  # what a plain conversion would show
    assert pixel(load_image(hidden)) == (255, 255, 255)
    assert pixel(load_image(encode(hidden))) == (255, 255, 255)
    half = Image.new("LA", (1, 1), (0, 128))
    assert pixel(load_image(half)) == (127, 127, 127)


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putdata([0, 1])
    assert pixel(load_image(image)) == RED
    see_through = load_image(encode(image, "PNG", transparency=1))
    assert pixel(see_through, 0) == RED
    assert pixel(see_through, 1) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 100, (100, 100, 100)), ("1", 1, (255, 255, 255)), ("CMYK", (0, 255, 255, 0), (255, 0, 0))],
)
def test_other_modes(mode: str, value: object, expected: tuple[int, int, int]) -> None:
    assert pixel(load_image(Image.new(mode, (1, 1), value))) == expected


def test_cmyk_jpeg() -> None:
    loaded = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(loaded).astype(int) - (255, 0, 0)).max() <= 6


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    values = np.array([[0, 257 * 128, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    for source in (image, encode(image), values):
        assert [pixel(load_image(source), x)[0] for x in range(3)] == [0, 128, 255]


def test_float_arrays_from_zero_to_one_are_not_black() -> None:
    values = np.array([[[0.0, 0.5, 1.0]]])
    assert pixel(load_image(values)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((8,), np.uint8), "expected shape"),
        (np.zeros((0, 4, 3), np.uint8), "expected shape"),
        (np.full((2, 2), 200.0), "0 to 1"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), -0.5), "0 to 1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.array(["a"]), "expected shape"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(array)


def test_float_color_array() -> None:
    assert pixel(load_image(np.full((2, 2, 3), 1.0, np.float32))) == (255, 255, 255)
    assert pixel(load_image(np.full((2, 2), True))) == (255, 255, 255)


# --- damage and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format_: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"cut.{format_.lower()}"
    data = encode(noise, format_)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut"):
        load_image(path)


@pytest.mark.parametrize("side", [17_000, 30_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    start = time.monotonic()
    with pytest.raises(ImageError, match="pixels"):
        load_image(bomb)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no/such/file.png", "no such file"),
        (b"", "empty"),
        (b"this is text", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (17, "expected a path"),
        (None, "expected a path"),
        ("bad\0name.png", "cannot be read"),
        ("", "folder"),
    ],
)
def test_wrong_sources_are_named(source: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        load_image(source)  # type: ignore[arg-type]


def test_a_folder_and_a_large_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path)
    red(64, 64).save(tmp_path / "big.bmp")
    with pytest.raises(ImageError, match=r"big\.bmp.*12,342 bytes.*100"):
        load_image(tmp_path / "big.bmp", ImageLimits(max_bytes=100))


@pytest.mark.filterwarnings("ignore")  # Pillow warns of the damage it finds
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_end_in_a_picture_or_an_image_error(format_: str) -> None:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    data = encode(noise, format_)
    for _ in range(150):
        broken = bytearray(data)
        for position in rng.integers(0, len(data), 4):
            broken[position] = rng.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert load_image(bytes(broken)).mode == "RGB"


# --- downloads, from a real server ---------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = encode(red())
        if self.path == "/missing.png":
            self.send_error(404)
            return
        if self.path == "/away.png":
            self.send_response(302)
            self.send_header("Location", "/red.png")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/huge.png":
            self.send_header("Content-Length", str(10**12))
        elif self.path == "/short.png":
            self.send_header("Content-Length", str(len(body) + 50))
        self.end_headers()
        if self.path == "/endless.png":
            for _ in range(10_000):
                self.wfile.write(b"x" * 4096)
        elif self.path == "/drip.png":
            for _ in range(200):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/silent.png":
            time.sleep(3)
        else:
            self.wfile.write(b"<html>" if self.path == "/page.png" else body)

    def log_message(self, *_: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up early is the point of these tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


FAST = ImageLimits(max_bytes=100_000, timeout_s=0.6)


@pytest.mark.parametrize("path", ["/red.png", "/away.png"])
def test_download(server: str, path: str) -> None:
    assert pixel(load_image(server + path)) == RED


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing.png", "404"),
        ("/huge.png", "1,000,000,000,000 bytes"),
        ("/endless.png", "exceeds the limit"),
        ("/drip.png", r"longer than 0\.6 s"),
        ("/silent.png", r"longer than 0\.6 s"),
        ("/short.png", "broke off"),
        ("/page.png", "not an image"),
    ],
)
def test_bad_downloads_are_named(server: str, path: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(server + path, FAST)
    assert path in str(caught.value)


def test_unreachable_host() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ImageError, match="cannot be reached"):
        load_image(f"http://127.0.0.1:{port}/x.png", FAST)
