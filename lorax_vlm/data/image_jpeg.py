"""JPEG: what a file asks of the decoder, known before it is decoded. No torch.

The decoder gets the picture alone. Metadata are cut out, because reading them is where small files cost much: EXIF
whose entries all point at the same bytes, previews, further pictures behind the first.
"""

import io
import re
from dataclasses import dataclass

from PIL import Image, JpegImagePlugin

from lorax_vlm.data.image_exif import orientation_of
from lorax_vlm.data.image_limits import ImageLimits
from lorax_vlm.data.image_pixels import Decoded, Picture, bytes_of, whole
from lorax_vlm.errors import ImageError

MAX_PARTS = 100_000
"""Segments, chunks or blocks of one file that are looked at."""
_MAX_SCANS = 100
"""Encoders write about ten. The decoder goes through all of the picture for each."""
_MAX_BLOCK_VISITS = 100_000_000
"""Of all scans together; a photograph of 200 megapixels with the usual ten has 25 to 45 million."""
_END = b"\xff\xd9"
_CODES = bytes(value * 89 % 255 for value in range(4096))
"""Of any table, without a marker among them."""
_PADDING = _CODES + b"".join(b"\xff" + bytes([0xD0 + number % 8]) + _CODES[:512] for number in range(16))
"""More of a picture, after each mark of a restart too; behind a picture that is whole the decoder skips it."""
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_SHRINKABLE = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_KEPT = {*range(0xC0, 0xE0), 0xE0, 0xEE}
"""Markers whose segments the decoder needs: tables, frames, scans, and the two that say how colours are stored."""


@dataclass(frozen=True)
class _Frame:
    kind: int
    width: int
    height: int
    samplings: dict[int, tuple[int, int]]
    """Horizontal and vertical sampling factor, by a component's number."""

    def blocks(self, component: int) -> int:
        """Of 8 by 8 samples that a component has."""
        across, down = self.samplings.get(component, (1, 1))
        widest = max(across for across, _ in self.samplings.values()) or 1
        highest = max(down for _, down in self.samplings.values()) or 1
        return -(-self.width * across // (8 * widest)) * -(-self.height * down // (8 * highest))


def open_jpeg(data: bytes, name: str, limits: ImageLimits) -> Picture:
    """Look at a JPEG.

    Raises:
        ImageError: It is damaged, or asks for more work than any picture.
    """
    view, frame, orientation = memoryview(data), None, 1
    kept: list[bytes | memoryview] = [view[:2]]
    scans: list[list[int]] = []
    missing: dict[tuple[int, int], int] = {}
    position, parts = 2, 0
    while found := _MARKER.search(data, position):
        parts += 1
        marker, start = found[1][0], found.end()
        if scans:
            kept.append(view[position : found.start()])  # the coded picture
        position = start
        if marker == 0xD9:
            kept.append(found[0])
            break
        if marker in (0x01, 0xD8):
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        if position < start + 2 or position > len(data) or parts > MAX_PARTS:
            raise ImageError(name, "its data are damaged or truncated: a JPEG segment leads out of the file.")
        body = data[start + 2 : position]
        if marker in _FRAMES:
            if frame is not None:
                raise ImageError(name, "its data are damaged: it has two JPEG frames.")
            frame = _read_frame(marker, body)
        elif marker == 0xDA:
            scans.append(list(body[1 : 1 + 2 * (body[0] if body else 0) : 2]))
            _take_scan(missing, scans[-1], bytes(body[-3:]))
        elif marker == 0xE1 and body.startswith(b"Exif\0\0") and orientation == 1:
            orientation = orientation_of(body)
        if marker in _KEPT:
            kept += [found[0], view[start:position]]
    else:
        kept.append(view[position:])
    if frame is None or not scans:
        raise ImageError(name, "its data are damaged or truncated: it ends before the picture.")
    _require_all_scans(frame, missing, name)
    return _picture(b"".join(kept), frame, scans, orientation, name)


def _require_all_scans(frame: _Frame, missing: dict[tuple[int, int], int], name: str) -> None:
    if frame.kind in _PROGRESSIVE and any(missing.get((c, k), 1) for c in frame.samplings for k in range(64)):
        raise ImageError(name, "its data are truncated: scans of a progressive JPEG are missing.")


def _take_scan(missing: dict[tuple[int, int], int], components: list[int], how: bytes) -> None:
    """Note how many bits of which coefficients are still missing after a progressive scan: ``Ss``, ``Se``, ``AhAl``."""
    if len(how) == 3 and how[1] < 64:
        missing |= {(c, k): how[2] & 15 for c in components for k in range(how[0], how[1] + 1)}


def _ends_evenly(image: Image.Image) -> bool:
    """Whether the last block is of one brightness: so looks what the decoder puts in the place of missing data."""
    corner = ((image.width - 1) // 8 * 8, (image.height - 1) // 8 * 8, image.width, image.height)
    values = image.crop(corner).convert("L").tobytes()
    return max(values) - min(values) <= 2


def _ends_early(data: bytes) -> bool:
    """Whether the mark of the end stands before the picture's: what is put before it then shows in the picture."""
    if not data.endswith(_END):
        return False
    thumbnails = []
    for padding in (b"", _PADDING):
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data.removesuffix(_END) + padding + _END))
        image.draft(None, (1, 1))
        thumbnails.append(image.convert("RGB").tobytes())
    return thumbnails[0] != thumbnails[1]


def _read_frame(marker: int, body: bytes) -> _Frame:
    samplings = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body) - 2, 3)}
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return _Frame(marker, width, height, samplings or {0: (1, 1)})


def _picture(data: bytes, frame: _Frame, scans: list[list[int]], orientation: int, name: str) -> Picture:
    visits = sum(frame.blocks(component) for scan in scans for component in scan)
    if len(scans) > _MAX_SCANS or visits > _MAX_BLOCK_VISITS:
        raise ImageError(
            name,
            f"a JPEG with {len(scans):,} scans of {frame.width}x{frame.height} pixels is made to keep decoders busy.",
        )
    # Unless the first scan is all, the decoder holds every coefficient of the picture, two bytes each.
    several = frame.kind in (0xC2, 0xC6, 0xCA, 0xCE) or len(scans[0]) < len(frame.samplings)
    coefficients = 2 * 64 * sum(frame.blocks(component) for component in frame.samplings) if several else 0
    mode = "L" if len(frame.samplings) == 1 else "RGB"

    def scale(factor: int) -> int:
        return next(scale for scale in (8, 4, 2, 1) if scale <= factor) if frame.kind in _SHRINKABLE else 1

    def kept(factor: int) -> int:
        return bytes_of(mode, -(-frame.width // scale(factor)) * -(-frame.height // scale(factor)))

    def decode(factor: int) -> tuple[Decoded, tuple[int, int]]:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
        if image.size != (frame.width, frame.height):
            raise ImageError(name, "its data are damaged: it has two sizes.")
        if scale(factor) > 1:
            image.draft(None, (max(1, frame.width // scale(factor)), max(1, frame.height // scale(factor))))
        image.load()
        if _ends_evenly(image) and _ends_early(data):
            raise ImageError(name, "its data are truncated: a JPEG's end stands before the end of its picture.")
        return whole(image)

    return Picture((frame.width, frame.height), decode, lambda factor: coefficients + kept(factor), kept, orientation)
