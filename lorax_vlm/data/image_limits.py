"""What an image may cost, and how errors name one. No torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lorax_vlm.foreign import shown_address

ImageSource = str | Path | bytes | Image.Image | np.ndarray
_SHOWN = 200


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost. Raise a limit deliberately, per call."""

    max_pixels: int = 64_000_000
    """Width times height of the result. Larger pictures are shrunk to it while they are decoded."""
    max_bytes: int = 128 * 2**20
    """Size of a file or download. Photographs of 200 megapixels have 40 to 80 MB."""
    timeout_s: float = 20.0
    """For a whole download: finding the host, connecting, every redirect, the last byte."""
    max_source_pixels: int = 210_000_000
    """Width times height in the file, looked at before anything is decoded: it decides how long decoding takes."""
    max_memory_bytes: int = 768 * 2**20
    """What decoding may take beside the file itself, computed before it begins."""
    allow_private: bool = False
    """Fetch from addresses that are not public: this machine, the local network, a cloud's metadata."""
    allow_paths: bool = True
    """Take a text that is no http(s) address for a path. Turn it off when texts come from strangers."""


DEFAULT_LIMITS = ImageLimits()


def describe_source(source: object) -> str:
    """How errors and listings name an image; user, password and query of an address are left out."""
    if isinstance(source, str | Path):
        text = shown_address(source) if isinstance(source, str) else str(source)
        return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{memoryview(source).nbytes} bytes>"
    if isinstance(source, Image.Image):
        return f"<PIL image {source.mode} {source.width}x{source.height}>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype} {source.shape}>"
    return f"<{type(source).__name__}>"
