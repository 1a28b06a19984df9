"""Fingerprints of bases that were read before, kept as long as the files are the same. No torch.

Whether they are is told without reading all of them: by where they are, their size, their times, their number in the
file system, and the SHA-256 of their headers and of some of their blocks. A time of modification alone would not do:
copying tools set it back, and in images of containers all are equal.
"""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorax_vlm.models.tensor_files import MAX_HEADER_BYTES
from lorax_vlm.paths import written_whole
from lorax_vlm.settings import fingerprints_dir

logger = logging.getLogger(__name__)

SKETCH_BUCKETS = 64
_FORMAT = 3
_BLOCKS, _BLOCK_BYTES = 16, 2**16
_PREFIX_BYTES = 8


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a base."""

    shape: tuple[int, ...]
    digest: str
    """SHA-256 of its values in half precision when they survive it, else in single: in which precision they are stored
    does not matter."""
    norm: float
    sketch: np.ndarray
    """``SKETCH_BUCKETS`` numbers whose difference between two tensors has about the norm of the tensors' difference."""


def key_of(files: Iterable[Path]) -> str:
    """What stands for some weight files; another one as soon as one of them was written to, or replaced.

    Raises:
        OSError: One cannot be read.
    """
    facts = [str(_FORMAT)]
    for file in files:
        status = file.stat()
        place = f"{file.resolve()} {status.st_dev} {status.st_ino}"
        facts.append(f"{place} {status.st_mtime_ns} {status.st_ctime_ns} {_sample(file)}")
    return _digest(facts)


def content_key_of(files: Iterable[Path]) -> str:
    """What stands for some weight files wherever they are; another one as soon as one of them was written to.

    Raises:
        OSError: One cannot be read.
    """
    return _digest([f"{file.name} {file.stat().st_mtime_ns} {_sample(file)}" for file in files])


def _digest(facts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]


def _sample(file: Path) -> str:
    """Size, and SHA-256 of the header and some blocks."""
    content = hashlib.sha256()
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(_PREFIX_BYTES), "little")
        header = min(_PREFIX_BYTES + min(length, MAX_HEADER_BYTES), size)
        for place, length in [(0, header), *((place, _BLOCK_BYTES) for place in _places(header, size))]:
            opened.seek(place)
            content.update(opened.read(length))
    return f"{size} {content.hexdigest()}"


def _places(first: int, end: int) -> list[int]:
    """Where the blocks begin that are looked at: all over the values, the last ones among them."""
    last = max(end - _BLOCK_BYTES, first)
    return sorted({first + (last - first) * number // (_BLOCKS - 1) for number in range(_BLOCKS)})


def keep(key: str, tensors: Mapping[str, TensorRecord]) -> None:
    """Remember what was read. Where that cannot be written it is read again the next time, and a warning says so."""
    rows = {
        name: [list(r.shape), r.digest, r.norm, base64.b64encode(r.sketch.astype("<f4").tobytes()).decode()]
        for name, r in tensors.items()
    }
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(json.dumps({"tensors": rows}).encode())
    except OSError as error:
        logger.warning("What was read of the base's weights cannot be kept in %s: %s.", path.parent, error.strerror)


def find(key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorRecord] | None:
    """What was kept; None when there is nothing, or something that is not of these tensors.

    Args:
        key: See ``key_of``.
        shapes: Of all tensors by name, as the files' headers say.
    """
    try:
        rows = json.loads(_path(key).read_text(encoding="utf-8"))["tensors"]
        tensors = {name: _record(*row) for name, row in rows.items()}
    except Exception:  # not there, or not readable: the weights themselves are
        return None
    return tensors if {name: record.shape for name, record in tensors.items()} == dict(shapes) else None


def _record(shape: list[int], digest: str, norm: float, sketch: str) -> TensorRecord:
    values = np.frombuffer(base64.b64decode(sketch), "<f4").astype(np.float64)
    if values.shape != (SKETCH_BUCKETS,) or not isinstance(digest, str) or len(digest) != 32:
        raise ValueError("no record of a tensor")
    return TensorRecord(tuple(shape), digest, float(norm), values)


def _path(key: str) -> Path:
    return fingerprints_dir() / f"{key}.json"
