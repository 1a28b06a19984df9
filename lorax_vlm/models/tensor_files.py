"""Safetensors files as bytes: their headers, checked, and their values, chunk by chunk. No torch.

The library's own reader gives whole tensors and does not know bfloat16 without torch; a base of 15 GB is read here with
a few megabytes of memory.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_HEADER_BYTES = 100 * 1024**2
"""The limit of the safetensors library."""
CHUNK_VALUES = 2**20
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in its file."""

    name: str
    path: Path
    dtype: str
    """As safetensors calls it, such as ``BF16``."""
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    nbytes: int

    @property
    def is_float(self) -> bool:
        """Whether it holds numbers that are weights."""
        return self.dtype in _FLOATS or self.dtype == "BF16"

    def chunks(self) -> Iterator[np.ndarray]:
        """Its values in order as float32, at most ``CHUNK_VALUES`` at a time; numbers other than floats as bytes."""
        if self.nbytes == 0:
            return
        stored = {"BF16": np.uint16}.get(self.dtype, _FLOATS.get(self.dtype, np.uint8))
        count = self.nbytes // np.dtype(stored).itemsize
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, count, CHUNK_VALUES):
                values = np.fromfile(file, dtype=stored, count=min(CHUNK_VALUES, count - first))
                if self.dtype == "BF16":
                    yield (values.astype(np.uint32) << 16).view(np.float32)
                else:
                    yield values.astype(np.float32, copy=False) if self.is_float else values

    def read(self) -> np.ndarray:
        """All of its values, float32."""
        return np.concatenate([*self.chunks(), np.empty(0, np.float32)]).reshape(self.shape)


def read_header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a file in its order, and its metadata.

    Raises:
        ValueError: It is no sound safetensors file: cut off, an oversize header, tensors that overlap or leave gaps, a
            name twice, sizes that do not fit the shapes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"its header of {length:,} bytes does not fit a file of {size:,} bytes")
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts by name")
    tensors = sorted((_tensor(name, entry, path, 8 + length) for name, entry in header.items()), key=lambda t: t.start)
    end = 8 + length
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"{tensor.name}: begins at byte {tensor.start}, the one before ends at {end}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, the file at {size:,}")
    return tensors, metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name occurs twice in its header")
    return dict(pairs)


def _tensor(name: str, entry: object, path: Path, base: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name}: its entry is {str(entry)[:60]}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [shape, offsets]
    if not all(isinstance(n, list) and all(type(v) is int and 0 <= v < 2**48 for v in n) for n in numbers):
        raise ValueError(f"{name}: shape {str(shape)[:60]}, offsets {str(offsets)[:60]}")
    if not isinstance(dtype, str) or dtype not in _WIDTHS:
        raise ValueError(f"{name}: type {str(dtype)[:20]} is not known")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _WIDTHS[dtype]:
        raise ValueError(f"{name}: bytes {offsets} do not fit shape {shape} of {dtype}")
    return StoredTensor(name, path, dtype, tuple(shape), base + offsets[0], offsets[1] - offsets[0])
