"""Every kind of image a user may hold becomes right RGB, or an error that names it."""

import contextlib
import hashlib
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.data.images import ImageLimits, content_digest, decode_image, load_image, read_image_bytes
from lorax_vlm.errors import ImageError
from tests.images_for_tests import as_pillow_reads_it, encode, exif, png, with_exif

RED = (200, 30, 40)


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
    assert read_image_bytes(path) == data
    assert decode_image(data).tobytes() == red().tobytes()
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


def test_content_is_the_same_wherever_it_lies_and_whatever_it_is_called(tmp_path: Path) -> None:
    data = encode(red())
    for name in ("a.png", "b.jpg", "é/c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        for spelt in (path, str(path), f"{path.parent}/../{path.parent.name}/{path.name}"):
            assert content_digest(spelt) == hashlib.sha256(data).hexdigest() == content_digest(data)
    picture = Image.fromarray(NOISE)
    same = [picture, picture.copy(), NOISE, np.asfortranarray(NOISE), NOISE[:, ::-1][:, ::-1]]
    assert len({content_digest(source) for source in same}) == 1
    assert content_digest(np.broadcast_to(NOISE[:1], NOISE.shape)) != content_digest(NOISE)
    brown = red().quantize(4)
    blue = brown.copy()
    blue.putpalette([0, 0, 255])
    hidden, turned = brown.copy(), picture.copy()
    hidden.info["transparency"] = 0
    turned.getexif()[0x0112] = 6
    others = [picture.convert("RGB"), picture.resize((31, 40)), NOISE.astype(np.uint16), NOISE[..., :3], brown, blue]
    others += [hidden, turned]
    assert len({content_digest(source) for source in (picture, *others)}) == 1 + len(others) - 1, (
        "an array is its image"
    )
    for wrong in (tmp_path, tmp_path / "no", np.zeros(3), None):
        with pytest.raises(ImageError):
            content_digest(wrong)  # type: ignore[arg-type]


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


def test_a_tiff_whose_lowest_value_is_below_zero() -> None:
    """A scan in Hounsfield units, from -1024 to 3071: black is the lowest, and nothing is counted from the end."""
    values = np.linspace(-1024, 3071, 64).astype("<i2").reshape(8, 8)
    written = values.tobytes()
    entries = [
        *((256, 4, 8), (257, 4, 8), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 8)),
        *((279, 4, len(written)), (339, 3, 2), (340, 8, -1024), (341, 8, 3071)),
    ]
    packed = {3: "<H2x", 4: "<I", 8: "<h2x"}
    table = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack(packed[kind], value) for tag, kind, value in entries
    )
    head = struct.pack("<2sHI", b"II", 42, 8 + len(written))
    picture = load_image(head + written + struct.pack("<H", len(entries)) + table + bytes(4))
    expected = np.round((values.astype(int) + 1024) * 255 / 4095)
    assert np.abs(np.asarray(picture)[..., 0] - expected).max() <= 1


def test_float_color_array() -> None:
    assert pixel(load_image(np.full((2, 2, 3), 1.0, np.float32))) == (255, 255, 255)
    assert pixel(load_image(np.full((2, 2), True))) == (255, 255, 255)


NOISE = np.random.default_rng(0).integers(0, 256, (31, 40, 4), dtype=np.uint8)
EIGHT_BITS = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "LAB")
WAYS: dict[str, tuple[dict[str, object], ...]] = {
    "JPEG": ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}),
    "PNG": ({}, {"transparency": 3}, {"transparency": b"\0\x80\xff" * 40}, {"bits": 4}),
    "GIF": ({}, {"transparency": 3}, {"interlace": 0}),
    "BMP": ({},),
    "TIFF": (*({"compression": kind} for kind in ("raw", "tiff_lzw", "jpeg", "packbits", "lzma")), {"big_tiff": True}),
    "WEBP": ({}, {"lossless": True}),
    "AVIF": ({"speed": 10}, {"speed": 10, "subsampling": "4:4:4"}),
    "PPM": ({},),
}


def files() -> list[tuple[str, bytes]]:
    """Every format in every mode and way that Pillow writes it."""
    found = []
    picture = Image.fromarray(NOISE)
    for mode in EIGHT_BITS:
        image = (
            picture.convert(mode) if mode != "LAB" else Image.frombytes("LAB", picture.size, NOISE[..., :3].tobytes())
        )
        for format_, ways in WAYS.items():
            for number, way in enumerate(ways):
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it has no such mode
                    found.append((f"{format_} {number} {mode}", encode(image, format_, **way)))
    return found


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # Pillow's own reading
@pytest.mark.parametrize(("name", "data"), files(), ids=lambda value: value if isinstance(value, str) else "")
def test_files_are_as_pillow_reads_them(name: str, data: bytes) -> None:
    """Structures are taken apart and pictures put together in strips; not a pixel of it shows."""
    loaded = load_image(data)
    assert type(loaded) is Image.Image
    assert np.array_equal(np.asarray(loaded), np.asarray(as_pillow_reads_it(data)))


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorax_vlm.data.image_pixels.STRIP_PIXELS", 7 * 40)
    for name, data in files()[::3]:
        if "PNG 2" not in name:
            assert np.array_equal(np.asarray(load_image(data)), np.asarray(as_pillow_reads_it(data))), name
    for kind in (np.uint8, np.uint16, np.float32, np.bool_):
        array = (NOISE[..., 0] > 99) if kind is np.bool_ else (NOISE / (255 if kind is np.float32 else 1)).astype(kind)
        many = np.asarray(load_image(array))
        monkeypatch.setattr("lorax_vlm.data.image_pixels.STRIP_PIXELS", 1 << 20)
        assert np.array_equal(many, np.asarray(load_image(array))), kind
        monkeypatch.setattr("lorax_vlm.data.image_pixels.STRIP_PIXELS", 7 * 40)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation(format_: str, turn: int) -> None:
    written = Image.Exif()
    written[0x0112] = turn
    data = encode(Image.fromarray(NOISE[..., :3]), format_, exif=written)
    assert np.array_equal(np.asarray(load_image(data)), np.asarray(as_pillow_reads_it(data)))
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(load_image(opened)), np.asarray(as_pillow_reads_it(data)))


@pytest.mark.parametrize(
    "written",
    [
        b"",
        b"II",
        b"II\x2a\0\xff\xff\xff\xff",
        b"XX\x2a\0\x08\0\0\0",
        exif((0x0112, 3, 1, 9)),
        exif((0x0112, 3, 1, 0)),
        exif((0x0112, 3, 2, 6)),
        exif((0x0112, 2, 1, 6)),
        exif((0x0112, 5, 1, 0xFFFFFF)),
        exif((0x0112, 3, 1, 6))[:15],
        *(exif((tag, 7, 0xFFFFFFF0, 8), (0x0112, 3, 1, 9)) for tag in (0x8769, 0x8825, 0x010E)),
    ],
)
def test_broken_exif_does_not_fail_a_good_image(written: bytes) -> None:
    plain = encode(red())
    for data in (with_exif(encode(red(), "JPEG"), written), encode(red(), "WEBP", exif=written, lossless=True)):
        assert load_image(data).size == (4, 2)
    chunk = struct.pack(">I", len(written)) + b"eXIf" + written + struct.pack(">I", zlib.crc32(b"eXIf" + written))
    assert pixel(load_image(plain[:33] + chunk + plain[33:])) == RED
    held = red()
    held.info["exif"] = written
    assert pixel(load_image(held)) == RED


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_exif(order: str) -> None:
    data = with_exif(encode(red(), "JPEG"), exif((0x010F, 3, 1, 5), (0x0112, 3, 1, 8), order=order))
    assert load_image(data).size == (2, 4)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
def test_of_several_frames_the_first(format_: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in (RED, "blue", "lime")]
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(load_image(data)).astype(int) - RED).max() < 8
    assert load_image(data).size == (16, 8)


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 2), (4, 9), (8, 77)])
def test_a_transparent_grey_of_few_bits(depth: int, value: int) -> None:
    """The value in the file is of that many bits; pixels are scaled to eight."""
    chunk = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", value)
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    shown = load_image(png(2, 1, depth, 0, bytes([0, (value << 8 - depth)]) + bytes(depth == 8), chunk))
    assert pixel(shown, 0) == (255, 255, 255)
    assert pixel(shown, 1) == (0, 0, 0)


# --- damage and limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(format_: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"cut.{format_.lower()}"
    data = encode(noise, format_)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut"):
        load_image(path)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("restarts", [0, 1])
def test_the_end_of_a_jpeg_before_the_end_of_its_picture(subsampling: int, restarts: int) -> None:
    """What cuts files may write the mark of the end behind: decoders fill the rest with grey and say nothing."""
    rng = np.random.default_rng(subsampling)
    for width, height in ((200, 200), (213, 31), (34, 60), (12, 250)):
        noise = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        data = encode(noise, "JPEG", quality=80, subsampling=subsampling, restart_marker_rows=restarts)
        scan = data.rfind(b"\xff\xda") + 12
        for share in (0.05, 0.3, 0.5, 0.9):
            cut = scan + int((len(data) - scan) * share)
            for damaged in (data[:cut] + b"\xff\xd9", data[:cut] + b"\xff\xd9" + data[cut:]):
                with pytest.raises(ImageError, match="a JPEG's end stands before the end of its picture"):
                    load_image(damaged)
        assert load_image(data).size == (width, height)
        for progressive in (False, True):
            flat = encode(noise.point(lambda _: 200), "JPEG", subsampling=subsampling, progressive=progressive)
            assert load_image(flat).getpixel((width - 1, height - 1)) == (200, 200, 200)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("side", [17_000, 30_000, 60_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    with pytest.raises(ImageError, match="pixels"):
        load_image(bomb)


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


def test_a_progressive_jpeg_without_its_last_scans() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    assert len(starts) > 5
    for start in starts[1:]:
        with pytest.raises(ImageError, match="scans of a progressive JPEG are missing"):
            load_image(data[:start] + b"\xff\xd9")
    assert load_image(data).size == (80, 60)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("bits", "colour"), [(8, 0), (8, 2), (8, 6), (16, 2), (1, 0)])
def test_a_png_whose_data_end_soundly_before_the_picture(bits: int, colour: int, interlaced: int) -> None:
    """Sound as a stream, with half of the rows: decoders leave the rest black and say nothing."""
    width, height, channels = 21, 16, {0: 1, 2: 3, 6: 4}[colour]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for x, y, across, down in passes if interlaced else ((0, 0, 1, 1),):
        columns = len(range(x, width, across))
        rows += (b"\0" + b"\x7f" * -(-columns * bits * channels // 8)) * len(range(y, height, down))

    def png_of(raw: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )

    assert load_image(png_of(rows)).size == (width, height)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError, match="truncated"):
            load_image(png_of(rows[: int(len(rows) * share)]))
