"""Encoded images on disk, shared by all runs on one base: an image is looked at once, ever.

A frozen image path gives the same features for the same image, so they are kept by content: the image's pixels, the
weights and settings of the encoder, and for InstructBLIP the instruction. Rows are gathered into segments, safetensors
files that appear complete or not at all and are memory-mapped when read. Several processes may use one folder: each
writes segments of its own, and two that encode the same image merely keep it twice.
"""

import hashlib
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.models.loading import LoadedModel

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024**2
DEFAULT_BUDGET_BYTES = 20 * 1024**3
_FEATURES = "features"
_ABANDONED_S = 3600


class FeatureCache:
    """Features ``(Q, D)`` by image, in segments below one folder."""

    def __init__(self, folder: Path, encoder: str, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        """Open the cache of one encoder; see ``encoder_digest``.

        Args:
            folder: Of all encoders' caches together.
            encoder: Digest of everything that makes features.
            budget_bytes: Most disk space for all encoders; segments that were not used longest are removed first.
        """
        self._root, self._folder = folder, folder / encoder
        self._budget_bytes = budget_bytes
        self._open: dict[Path, Any] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._fresh: dict[str, Tensor] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("*.tmp"):  # of a process that was killed while it wrote
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("*.safetensors")):
            self._read_index(path)

    def __len__(self) -> int:
        """Number of rows known."""
        return len(self._places) + len(self._fresh)

    def _read_index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as segment:
                keys = json.loads((segment.metadata() or {})["keys"])
                rows = segment.get_slice(_FEATURES).get_shape()[0]
            if len(keys) != rows:
                raise ValueError(f"{len(keys)} keys for {rows} rows")
        except FileNotFoundError:  # another process made room
            return
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            logger.warning("%s is damaged and removed; its images are encoded again: %s", path, error)
            path.unlink(missing_ok=True)
            return
        self._places |= {key: (path, row) for row, key in enumerate(keys)}

    def get(self, key: str) -> Tensor | None:
        """Features of an image, None when they are not known (any more)."""
        if key in self._fresh:
            return self._fresh[key]
        if key not in self._places:
            return None
        path, row = self._places[key]
        try:
            if path not in self._open:
                os.utime(path)  # segments leave by least recent use
                self._open[path] = safe_open(path, framework="pt").__enter__().get_slice(_FEATURES)
        except FileNotFoundError:  # another process made room
            self._places = {k: place for k, place in self._places.items() if place[0] != path}
            return None
        features: Tensor = self._open[path][row]
        return features

    def put(self, key: str, features: Tensor) -> None:
        """Keep an image's features; they are on disk after ``flush``, or when enough have come together."""
        if key in self._places:
            return
        self._fresh[key] = features.cpu().contiguous()
        if len(self._fresh) * features.nbytes >= SEGMENT_BYTES:  # all are of one shape
            self.flush()

    def flush(self) -> None:
        """Write what is new as one segment, and make room when the budget is exceeded."""
        if not self._fresh:
            return
        path = self._folder / f"{uuid.uuid4().hex}.safetensors"
        scratch = path.with_suffix(".tmp")
        metadata = {"format": "pt", "keys": json.dumps(list(self._fresh))}
        save_file({_FEATURES: torch.stack(list(self._fresh.values()))}, scratch, metadata=metadata)
        os.replace(scratch, path)
        self._places |= {key: (path, row) for row, key in enumerate(self._fresh)}
        self._fresh.clear()
        self._make_room(path)

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
            self._places = {key: place for key, place in self._places.items() if place[0] != path}
            self._open.pop(path, None)
            total -= size


def encoder_digest(base: LoadedModel) -> str:
    """What features depend on beside the image: weights of the image path, configuration, preprocessing, precision."""
    facts = {
        "weights": {
            part: digest for part, digest in base.fingerprint.components.items() if part in IMAGE_PATH_COMPONENTS
        },
        "architecture": base.description.configuration,
        "dtype": base.placement.dtype,
        "device": base.device.type,
        "preprocessing": base.family.processor.image_processor.to_dict(),  # type: ignore[attr-defined]
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def image_key(image: Image.Image, instruction: str = "") -> str:
    """Digest of an image's pixels, and of the instruction it is read with."""
    digest = hashlib.sha256(f"{image.mode} {image.size} {len(instruction)} {instruction}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
