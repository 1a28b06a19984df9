"""Any image a user may hold becomes a right RGB picture, or an error that names it.

"Right" means: turned as its EXIF says, transparent parts over white instead of whatever colour hides beneath them,
16 bits scaled to 8 instead of cut off. The libraries' own conversions do none of these.
"""

import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lorax_vlm.errors import ImageError

ImageSource = str | Path | bytes | Image.Image | np.ndarray

# Formats with a decoder in Pillow itself; PostScript and friends would call other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost. Raise a limit deliberately, per call."""

    max_pixels: int = 64_000_000
    """Width times height, checked before anything is decoded: a small file can unpack to gigabytes."""
    max_bytes: int = 64 * 1024 * 1024
    """Size of a file or download."""
    timeout_s: float = 20.0
    """For a whole download, connection included."""


DEFAULT_LIMITS = ImageLimits()


def load_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read an image from a path, an http(s) URL, encoded bytes, a PIL image or a numpy array.

    Arrays are ``(H, W)`` or ``(H, W, C)`` with 1, 3 or 4 channels: uint8, uint16, bool, or floats within 0 to 1.

    Returns:
        An RGB image that shares no memory with the source.

    Raises:
        ImageError: It cannot be read; the message names the source and the reason.
    """
    name = describe_source(source)
    if isinstance(source, Image.Image):
        return _decode(lambda: source, name, limits)
    if isinstance(source, np.ndarray):
        return _decode(lambda: _from_array(source, name), name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), name, limits)
    if isinstance(source, str) and urlsplit(source).scheme in ("http", "https"):
        return _from_bytes(_download(source, limits), name, limits)
    if isinstance(source, str | Path):
        return _from_bytes(_read_file(source, name, limits), name, limits)
    raise ImageError(name, "expected a path, an http(s) URL, bytes, a PIL image or a numpy array.")


def describe_source(source: object) -> str:
    """How errors and listings name an image."""
    if isinstance(source, str | Path):
        text = str(source)
        return repr(text if len(text) <= 200 else text[:197] + "...")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if isinstance(source, Image.Image):
        return f"<PIL image {source.mode} {source.width}x{source.height}>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype} {source.shape}>"
    return f"<{type(source).__name__}>"


def _read_file(source: str | Path, name: str, limits: ImageLimits) -> bytes:
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            raise ImageError(name, "it is a folder.")
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise ImageError(name, f"the file has {size:,} bytes, the limit is {limits.max_bytes:,}.")
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(name, f"no such file (looked in {Path.cwd()}).") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, f"the file cannot be read: {error}") from error


def _download(url: str, limits: ImageLimits) -> bytes:
    name, deadline = describe_source(url), time.monotonic() + limits.timeout_s
    request = urllib.request.Request(url, headers={"User-Agent": "lorax-vlm", "Accept": "image/*"})
    too_slow = f"the download took longer than {limits.timeout_s:g} s."
    try:
        with urllib.request.urlopen(request, timeout=limits.timeout_s) as response:
            announced = int(response.headers.get("Content-Length") or 0)
            if announced > limits.max_bytes:
                raise ImageError(name, f"the download has {announced:,} bytes, the limit is {limits.max_bytes:,}.")
            received = bytearray()
            # read1 returns what has arrived, so a server that drips bytes cannot stretch the time limit.
            while chunk := response.read1(_CHUNK_BYTES):
                received += chunk
                if len(received) > limits.max_bytes:
                    raise ImageError(name, f"the download exceeds the limit of {limits.max_bytes:,} bytes.")
                if time.monotonic() > deadline:
                    raise ImageError(name, too_slow)
            if len(received) < announced:
                raise ImageError(name, f"the download broke off after {len(received):,} of {announced:,} bytes.")
            return bytes(received)
    except urllib.error.HTTPError as error:
        error.close()  # it is the response itself
        raise ImageError(name, f"the server answered {error.code} {error.reason}.") from error
    except TimeoutError as error:
        raise ImageError(name, too_slow) from error
    except urllib.error.URLError as error:
        reason = too_slow if isinstance(error.reason, TimeoutError) else f"it cannot be reached: {error.reason}."
        raise ImageError(name, reason) from error
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, f"the download failed: {error}") from error


def _from_bytes(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    if not data:
        raise ImageError(name, "it is empty.")
    if len(data) > limits.max_bytes:
        raise ImageError(name, f"it has {len(data):,} bytes, the limit is {limits.max_bytes:,}.")
    return _decode(lambda: Image.open(io.BytesIO(data), formats=_FORMATS), name, limits)


def _decode(open_image: Callable[[], Image.Image], name: str, limits: ImageLimits) -> Image.Image:
    try:
        image = open_image()
        if image.width * image.height > limits.max_pixels:
            raise ImageError(name, f"{image.width}x{image.height} pixels exceed the limit of {limits.max_pixels:,}.")
        if not image.width or not image.height:
            raise ImageError(name, f"it has no pixels ({image.width}x{image.height}).")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), name)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(name, f"it is not an image in a known format ({', '.join(_FORMATS)}).") from None
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"it would unpack to too many pixels: {error}") from error
    # What Pillow raises on truncated or broken data, by decoder.
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError) as error:
        raise ImageError(name, f"its data are damaged or truncated: {error}") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_deep(np.asarray(image), name).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        paper = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(paper, layered).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _scale_deep(values: np.ndarray, name: str) -> Image.Image:
    """Grey values of more than 8 bits to 8: integers as 16-bit, floats as 0 to 1."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(name, "it contains NaN or infinite values.")
    limit = 1.0 if values.dtype.kind == "f" else 65535.0
    if low < 0 or high > limit:
        raise ImageError(name, f"its values run from {low:g} to {high:g}; expected 0 to {limit:g}.")
    return Image.fromarray(np.round(values * (255.0 / limit)).astype(np.uint8))


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        hint = (
            " Move the channels last: array.transpose(1, 2, 0)."
            if array.ndim == 3 and array.shape[0] in (1, 3, 4)
            else ""
        )
        raise ImageError(name, f"expected shape (H, W) or (H, W, 1|3|4).{hint}")
    if array.dtype == np.bool_:
        return Image.fromarray(array.astype(np.uint8) * 255)
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.uint16 or array.dtype.kind == "f":
        return _scale_deep(array, name)
    raise ImageError(name, f"expected uint8, uint16, bool or float values from 0 to 1, not {array.dtype}.")
