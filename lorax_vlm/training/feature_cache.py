"""Encoded images on disk, shared by all runs on one base: an image is looked at once, ever.

A frozen image path gives the same features for the same image, so they are kept by content: the image's pixels, the
weights and settings of the encoder, and for InstructBLIP the instruction. Rows are gathered into segments, safetensors
files that appear complete or not at all. Several processes may use one folder: each writes segments of its own, and two
that encode the same image merely keep it twice.

It only saves time, so it never ends a run: what cannot be read is encoded again, every row is checked against its
digest, and a cache that cannot be written is switched off with one warning. Rows are read, not mapped into memory,
because a mapped file that gets shorter kills the process.
"""

import hashlib
import itertools
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save

from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.models.families.pictures import Features
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.tensor_files import StoredTensor, read_header
from lorax_vlm.paths import remove_abandoned, written_whole

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024**2
DEFAULT_BUDGET_BYTES = 20 * 1024**3
_FEATURES = "features"
_FORMAT = 2
"""Of segments; those of another one are not looked at, and make room in time."""
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@dataclass(frozen=True)
class _Place:
    """Where an image's features are."""

    path: Path
    segment: StoredTensor
    start: int
    """First of its rows."""
    count: int
    grid: tuple[int, ...]
    digest: str


class FeatureCache:
    """Features by image, in segments below one folder: files of all their images' rows ``(sum of N, D)``."""

    def __init__(self, folder: Path, encoder: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """Open the cache of one encoder; see ``encoder_digest``.

        Args:
            folder: Of all encoders' caches together.
            encoder: Digest of everything that makes features.
            budget_bytes: Most disk space for all encoders; segments that were not used longest are removed first.
        """
        self._root, self._folder = folder, folder / encoder
        self._budget_bytes = budget_bytes
        self._places: dict[str, _Place] = {}
        self._fresh: dict[str, Features] = {}
        self._fresh_bytes = 0
        self._used: set[Path] = set()
        self._off = False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self._folder)
            for path in sorted(self._folder.glob("*.safetensors")):
                self._read_index(path)
        except OSError as error:
            self._switch_off(error)

    def __len__(self) -> int:
        """Number of images known."""
        return len(self._places) + len(self._fresh)

    def _switch_off(self, error: Exception) -> None:
        if not self._off:
            logger.warning(
                "Images' features are not kept on disk any more (%s: %s); the run goes on.", self._folder, error
            )
        self._off = True
        self._places.clear()
        self._fresh.clear()
        self._fresh_bytes = 0

    def _read_index(self, path: Path) -> None:
        try:
            tensors, metadata = read_header(path)
            segment = next(tensor for tensor in tensors if tensor.name == _FEATURES)
            images = json.loads(metadata["images"])
            counts = [int(image["rows"]) for image in images]
            if sum(counts) != segment.shape[0] or min(counts) < 0 or segment.dtype not in _DTYPES:
                raise ValueError(f"{len(images)} images of {sum(counts)} rows, shape {segment.shape}")
            starts = itertools.accumulate(counts, initial=0)
            places = {
                image["key"]: _Place(path, segment, start, count, tuple(image["grid"]), image["digest"])
                for image, start, count in zip(images, starts, counts, strict=False)
            }
        except FileNotFoundError:  # another process made room
            return
        except (StopIteration, KeyError, ValueError, TypeError, IndexError) as error:
            self._drop(path, str(error))
            return
        self._places |= places

    def _drop(self, path: Path, reason: str) -> None:
        logger.warning("%s is damaged and removed; its images are encoded again: %s", path, reason)
        path.unlink(missing_ok=True)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        self._places = {key: place for key, place in self._places.items() if place.path != path}

    def get(self, key: str) -> Features | None:
        """Features of an image, None when they are not known (any more)."""
        if key in self._fresh:
            return self._fresh[key]
        place = self._places.get(key)
        if place is None:
            return None
        path = place.path
        try:
            data = _read_rows(place)
            if path not in self._used:
                os.utime(path)  # segments leave by least recent use
                self._used.add(path)
        except FileNotFoundError:  # another process made room
            self._forget(path)
            return None
        except OSError as error:
            self._switch_off(error)
            return None
        if _digest(data) != place.digest:
            self._drop(path, f"what begins at row {place.start} is not what was written")
            return None
        values = torch.frombuffer(data, dtype=_DTYPES[place.segment.dtype])
        return Features(values.reshape(place.count, *place.segment.shape[1:]), place.grid)

    def put(self, key: str, features: Features) -> None:
        """Keep an image's features; they are on disk after ``flush``, or when enough have come together."""
        if self._off or key in self._places:
            return
        self._fresh[key] = Features(features.values.cpu().contiguous(), features.grid)
        self._fresh_bytes += features.nbytes
        if self._fresh_bytes >= SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is new as one segment, and make room when the budget is exceeded."""
        if not self._fresh:
            return
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        images = [
            {
                "key": key,
                "rows": len(one.values),
                "grid": one.grid,
                "digest": _digest(one.values.view(torch.uint8).numpy().tobytes()),
            }
            for key, one in self._fresh.items()
        ]
        rows = torch.cat([one.values for one in self._fresh.values()])
        try:
            with written_whole(path) as file:
                file.write(save({_FEATURES: rows}, metadata={"format": "pt", "images": json.dumps(images)}))
            self._fresh.clear()
            self._fresh_bytes = 0
            self._read_index(path)
            self._make_room(path)
        except OSError as error:
            self._switch_off(error)

    def _make_room(self, newest: Path) -> None:
        segments = []
        for path in self._root.glob("*/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            segments.append((path == newest, status.st_mtime, path, status.st_size))
        total = sum(size for *_, size in segments)
        for is_newest, _, path, size in sorted(segments):
            if total <= self._budget_bytes or is_newest:
                return
            path.unlink(missing_ok=True)
            self._forget(path)
            total -= size


def _read_rows(place: _Place) -> bytearray:
    """The bytes of an image's rows; fewer where the file has become shorter."""
    size = place.segment.nbytes // place.segment.shape[0]
    with place.path.open("rb") as file:
        file.seek(place.segment.start + place.start * size)
        return bytearray(file.read(place.count * size))


def _digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def encoder_digest(base: LoadedModel) -> str:
    """What features depend on beside the image: weights of the image path, configuration, preprocessing, precision."""
    facts = {
        "format": _FORMAT,
        "weights": {
            part: digest for part, digest in base.fingerprint.components.items() if part in IMAGE_PATH_COMPONENTS
        },
        "architecture": base.description.configuration,
        "dtype": base.placement.dtype,
        "device": base.device.type,
        "preprocessing": base.family.processor.image_processor.to_dict(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def image_key(image: Image.Image, instruction: str = "") -> str:
    """Digest of an image's pixels, and of the instruction it is read with."""
    digest = hashlib.sha256(f"{image.mode} {image.size} {len(instruction)} {instruction}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
