"""Safetensors files as bytes: their headers, checked, and their values, chunk by chunk. No torch.

The library's own reader gives whole tensors and does not know bfloat16 without torch; a base of 15 GB is read here with
a few megabytes of memory. What this reader takes, the library's takes, too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorax_vlm.foreign import parse_json, quoted, text_problem

MAX_HEADER_BYTES = 100 * 1024**2
"""The limit of the safetensors library."""
CHUNK_VALUES = 2**20
_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is in its file, or in the bytes of one."""

    name: str
    source: Path | memoryview
    """The file, or all of its bytes."""
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
        """Its values in order as float32, at most ``CHUNK_VALUES`` at a time; numbers other than floats as bytes.

        Numbers that float32 does not hold become infinite.
        """
        if self.nbytes == 0:
            return
        stored = {"BF16": np.uint16}.get(self.dtype, _FLOATS.get(self.dtype, np.uint8))
        for values in self._stored(np.dtype(stored)):
            if self.dtype == "BF16":
                yield (values.astype(np.uint32) << 16).view(np.float32)
            elif self.is_float:
                with np.errstate(over="ignore", invalid="ignore"):
                    yield values.astype(np.float32, copy=False)
            else:
                yield values

    def _stored(self, dtype: np.dtype) -> Iterator[np.ndarray]:
        count = self.nbytes // dtype.itemsize
        if isinstance(self.source, memoryview):
            whole = np.frombuffer(self.source, dtype, count, self.start)
            for first in range(0, count, CHUNK_VALUES):
                yield whole[first : first + CHUNK_VALUES]
            return
        with self.source.open("rb") as file:
            file.seek(self.start)
            for first in range(0, count, CHUNK_VALUES):
                wanted = min(CHUNK_VALUES, count - first)
                values = np.fromfile(file, dtype=dtype, count=wanted)
                if len(values) < wanted:
                    raise ValueError(f"{self.name}: the file ends within it")
                yield values

    def read(self) -> np.ndarray:
        """All of its values, float32, apart from the file."""
        values = np.empty(math.prod(self.shape), np.float32)
        place = 0
        for chunk in self.chunks():
            values[place : place + len(chunk)] = chunk
            place += len(chunk)
        return values.reshape(self.shape)


def read_header(source: Path | bytes) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a file in its order, and its metadata.

    Args:
        source: The file, or all of its bytes.

    Raises:
        ValueError: It is no sound safetensors file: cut off, an oversize header, tensors that overlap or leave gaps, a
            name twice, sizes that do not fit the shapes.
        OSError: The file cannot be read.
    """
    if isinstance(source, bytes):
        length = _header_length(source[:8], len(source))
        return _parse(memoryview(source), source[8 : 8 + length], len(source))
    size = source.stat().st_size
    with source.open("rb") as file:
        return _parse(source, file.read(_header_length(file.read(8), size)), size)


def _header_length(prefix: bytes, size: int) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its header of {length:,} bytes does not fit a file of {size:,} bytes")
    return length


def _parse(source: Path | memoryview, header: bytes, size: int) -> tuple[list[StoredTensor], dict[str, str]]:
    try:
        entries = parse_json(header.decode("utf-8"), unique=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"its header is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"its header is {error}") from None
    if not isinstance(entries, dict):
        raise ValueError("its header is no object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no texts by name")
    for text in (*entries, *metadata, *metadata.values()):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{quoted(text)}: {text_problem(text)}")
    begin = end = 8 + len(header)
    tensors = [_tensor(name, entry, source, begin) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    for tensor in tensors:
        if tensor.start != end:
            raise ValueError(f"{quoted(tensor.name)}: begins at byte {tensor.start}, the one before ends at {end}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}, the file at {size:,}")
    return tensors, metadata


def _tensor(name: str, entry: object, source: Path | memoryview, base: int) -> StoredTensor:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quoted(name)}: its entry is {quoted(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [shape, offsets]
    if not all(isinstance(n, list) and all(type(v) is int and 0 <= v < 2**48 for v in n) for n in numbers):
        raise ValueError(f"{quoted(name)}: shape {str(shape)[:60]}, offsets {str(offsets)[:60]}")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{quoted(name)}: type {quoted(dtype)} is not known")
    if len(shape) > 64 or len(offsets) != 2 or (offsets[1] - offsets[0]) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{quoted(name)}: bytes {str(offsets)[:60]} do not fit shape {str(shape)[:60]} of {dtype}")
    return StoredTensor(name, source, dtype, tuple(shape), base + offsets[0], offsets[1] - offsets[0])
