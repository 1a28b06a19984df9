"""Any image a user may hold becomes a right RGB picture, or an error that names it. No torch.

"Right" means: turned as its EXIF says, transparent parts over white instead of whatever colour hides beneath them, 10,
12 or 16 bits as they look instead of cut off. Files and addresses may be anybody's: what they may cost is limited, only
ordinary files are read, and only public addresses are fetched from.
"""

import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lorax_vlm.data.image_exif import orientation_of
from lorax_vlm.data.image_files import read_image_bytes
from lorax_vlm.data.image_formats import open_picture
from lorax_vlm.data.image_limits import DEFAULT_LIMITS, ImageLimits, ImageSource, describe_source
from lorax_vlm.data.image_pixels import (
    Decoded,
    Deep,
    Picture,
    bytes_of,
    require_memory,
    require_size,
    to_rgb,
    whole,
)
from lorax_vlm.errors import ImageError, RemoteError
from lorax_vlm.fetching.client import Private, Rules, fetch_bytes

__all__ = [
    "DEFAULT_LIMITS",
    "ImageLimits",
    "ImageSource",
    "content_digest",
    "decode_image",
    "describe_source",
    "load_image",
    "read_image_bytes",
]

_ORIENTATION = 0x0112
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)


def load_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read an image from a path, an http(s) URL, encoded bytes, a PIL image or a numpy array.

    Arrays are ``(H, W)`` or ``(H, W, C)`` with 1, 3 or 4 channels: uint8, uint16, bool, or floats within 0 to 1.
    Pictures of 16 bits that use fewer are shown as they look: ``image_pixels.white_level`` says how many they use.

    Returns:
        An RGB image that shares no memory with the source.

    Raises:
        ImageError: It cannot be read; the message names the source and the reason.
    """
    name = describe_source(source)
    if isinstance(source, Image.Image):
        with _guarded(name):
            return to_rgb(_from_pillow(source, name, limits), name, limits)
    if isinstance(source, np.ndarray):
        with _guarded(name):
            return to_rgb(_from_array(source, name), name, limits)
    return decode_image(_encoded(source, name, limits), name, limits)


def decode_image(data: bytes, name: str = "", limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Read an image from encoded bytes and nothing else: no path, no address.

    Args:
        data: A file's contents: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF; of several pictures the first.
        name: How errors call it. Empty: by its size.
        limits: What it may cost.

    Raises:
        ImageError: It is damaged, too large, or in no known format.
    """
    name = name or describe_source(data)
    if not data:
        raise ImageError(name, "it is empty.")
    if len(data) > limits.max_bytes:
        raise ImageError(name, f"it has {len(data):,} bytes, the limit is {limits.max_bytes:,}.")
    with _guarded(name):
        return to_rgb(open_picture(bytes(data), name, limits), name, limits)


def content_digest(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    """SHA-256, in hexadecimal, by which an image is the same wherever it lies and whatever it is called.

    Of a path, an address and bytes: of the encoded bytes. Of a PIL image and an array: of mode, size and pixels,
    and how they are to be shown.

    Raises:
        ImageError: It cannot be read.
    """
    name = describe_source(source)
    if not isinstance(source, Image.Image | np.ndarray):
        return hashlib.sha256(_encoded(source, name, limits)).hexdigest()
    with _guarded(name):
        digest = hashlib.sha256()
        if isinstance(source, np.ndarray):
            height, width = _from_array(source, name).size[::-1]
            kind = (
                {(): "L", (1,): "L", (3,): "RGB", (4,): "RGBA"}[source.shape[2:]] if source.dtype == np.uint8 else None
            )
            digest.update(f"{kind or source.dtype.str + str(source.shape[2:])} {width}x{height} ".encode())
            for row in source:  # an array may repeat a few bytes of memory without end
                digest.update(np.ascontiguousarray(row).tobytes())
        else:
            orientation = _from_pillow(source, name, limits).orientation
            palette = source.getpalette("RGB") if source.mode in ("P", "PA") else ""
            shown = (orientation, source.info.get("transparency"))  # the same pixels may be turned, or partly hidden
            looks = "" if shown == (1, None) else repr(shown)
            digest.update(f"{source.mode} {source.width}x{source.height} {palette}{looks}".encode())
            digest.update(source.tobytes())
        return digest.hexdigest()


def _encoded(source: object, name: str, limits: ImageLimits) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and _ADDRESS.match(source):
        return _download(source, name, limits)
    if isinstance(source, str | Path):
        if not limits.allow_paths:
            raise ImageError(name, "it is no http or https address, and paths are not allowed here.")
        return read_image_bytes(source, limits)
    raise ImageError(name, "expected a path, an http(s) URL, bytes, a PIL image or a numpy array.")


def _download(url: str, name: str, limits: ImageLimits) -> bytes:
    rules = Rules(
        limits.timeout_s,
        private=Private.ALLOWED if limits.allow_private else Private.REFUSED,
        private_hint="For a server of your own: download the file and name it; in Python also "
        "load_image(url, ImageLimits(allow_private=True))",
    )
    try:
        return fetch_bytes(url, rules, limits.max_bytes, accept="image/*")
    except RemoteError as error:
        raise ImageError(name, f"{error.reason}.") from None


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Whatever a decoder raises on damaged data becomes an ``ImageError``."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (IndexError, EOFError, struct.error) as error:
        raise ImageError(name, "its data are damaged or truncated: it ends too early.") from error
    except Exception as error:
        raise ImageError(name, f"its data are damaged or truncated: {error}") from error


def _from_pillow(image: Image.Image, name: str, limits: ImageLimits) -> Picture:
    require_size(image.size, name, limits)
    if getattr(image, "tile", None):  # opened, but not decoded
        require_memory(image.size, 2 * bytes_of(image.mode, image.width * image.height), name, limits)
    image.load()  # before it says how it is turned, because TIFF turns itself
    return Picture(image.size, lambda _: whole(image), lambda _: 0, lambda _: 0, _turned(image))


def _turned(image: Image.Image) -> int:
    """Its orientation; damaged EXIF is as none."""
    written = image.info.get("exif")
    if isinstance(written, bytes):
        return orientation_of(written)
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def _from_array(array: np.ndarray, name: str) -> Picture:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = " Move the channels last: array.transpose(1, 2, 0)."
        raise ImageError(name, f"expected shape (H, W) or (H, W, 1|3|4).{hint}")
    deep = array.dtype.kind == "f" or (array.dtype.kind, array.dtype.itemsize) == ("u", 2)
    if not deep and array.dtype not in (np.uint8, np.bool_):
        raise ImageError(name, f"expected uint8, uint16, bool or float values from 0 to 1, not {array.dtype}.")
    values = array[:, :, 0] if array.shape[2:] == (1,) else array

    def strips(rows: int) -> Iterator[Image.Image]:
        for top in range(0, len(values), rows):
            part = np.ascontiguousarray(values[top : top + rows])
            yield Image.fromarray(part if part.dtype == np.uint8 else part.astype(np.uint8) * 255)

    decoded: Decoded = Deep(lambda top, bottom: values[top:bottom]) if deep else strips
    size = (array.shape[1], array.shape[0])
    return Picture(size, lambda _: (decoded, size), lambda _: 0, lambda _: 0)
