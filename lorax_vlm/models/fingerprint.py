"""Which weights a base has: a digest of every tensor, rolled up per component. No torch.

PEFT does not check the base: an adapter loads without a word on any model of the same shapes. The fingerprint makes
"same shapes, other weights" visible, and says how far apart two bases are. Reading all weights of a large checkpoint
takes a while; the result is kept and used again as long as its files are the same.
"""

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from lorax_vlm.errors import CheckpointError
from lorax_vlm.foreign import parse_json, quoted
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.kept_fingerprints import SKETCH_BUCKETS, TensorRecord, content_key_of, find, keep, key_of
from lorax_vlm.models.tensor_files import StoredTensor, read_header

_SKETCH_SEED = 20_260_101
_SKETCH_BLOCK = 2**16

_SHOWN_FROM_BYTES = 2**30

Progress = Callable[[int, int], None]
"""Told the bytes read so far and those there are."""


@contextmanager
def shown_progress(name: str) -> Iterator[Progress]:
    """A bar on the screen while a large checkpoint is read; none for a small one."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(f"{name}: reading its weights, once")

    def show(done: int, total: int) -> None:
        if total > _SHOWN_FROM_BYTES:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


@dataclass(frozen=True)
class Fingerprint:
    """The weights of one base."""

    tensors: Mapping[str, TensorRecord]

    @cached_property
    def components(self) -> dict[str, str]:
        """Digest of each component. Computed once: every adapter that comes into memory asks for it."""
        return {component: self.digest_of(own) for component, own in sorted(group_by_component(self.tensors).items())}

    def digest_of(self, names: Iterable[str]) -> str:
        """One digest of some tensors: of their names, shapes and values."""
        rows = [(name, list(self.tensors[name].shape), self.tensors[name].digest) for name in sorted(names)]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]

    def sketch_of(self, names: Iterable[str]) -> "Sketch":
        """One sketch of some tensors together."""
        total, square = np.zeros(SKETCH_BUCKETS), 0.0
        for name in sorted(names):
            record = self.tensors[name]
            total += record.sketch * _signs_of(name)
            square += record.norm**2
        return Sketch(math.sqrt(square), total)


@dataclass(frozen=True)
class Sketch:
    """Norm of some weights, and enough of them to estimate how far other ones are away. No proof of identity."""

    norm: float
    values: np.ndarray

    def distance(self, other: "Sketch") -> float:
        """Estimate of ``|W - W'| / |W|``, with a standard error of about 9 % of it."""
        return float(np.linalg.norm(self.values - other.values) / self.norm) if self.norm else math.inf

    def to_text(self) -> str:
        """As base64 of float32 values."""
        return base64.b64encode(self.values.astype("<f4").tobytes()).decode()

    @classmethod
    def from_text(cls, norm: float, text: str) -> "Sketch":
        """Back from ``to_text``.

        Raises:
            ValueError: It is no sketch.
        """
        values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float64)
        if values.shape != (SKETCH_BUCKETS,) or not np.isfinite(values).all() or not 0 <= norm < math.inf:
            raise ValueError("a sketch has 64 finite numbers and a norm")
        return cls(norm, values)


def read_fingerprint(folder: Path, progress: Progress | None = None, *, anew: bool = False) -> Fingerprint:
    """The fingerprint of a checkpoint folder: the one kept from before, or read from all its weights in parallel.

    Args:
        folder: Of the checkpoint.
        progress: Told how far it is.
        anew: Read all weights, whatever was kept.

    Raises:
        CheckpointError: The folder holds no safetensors weights, or a damaged file, or they change while they are read.
    """
    files = _weight_files(folder)
    key = _key_of(folder, files)
    tensors = _read_tensors(files)
    if not anew and (known := find(key, _shapes(tensors))) is not None:
        return Fingerprint(known)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    records: dict[str, TensorRecord] = {}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for tensor, record in zip(tensors, pool.map(_read_record, tensors), strict=True):
                records[tensor.name] = record
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total)
    except (OSError, ValueError) as error:
        raise CheckpointError(str(folder), [f"its weights cannot be read: {error}"]) from error
    if _key_of(folder, files) != key:
        raise CheckpointError(str(folder), ["its files changed while they were read"])
    keep(key, records)
    return Fingerprint(records)


def find_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint kept of a checkpoint folder whose files are still the same; nothing is computed.

    Raises:
        CheckpointError: The folder holds no safetensors weights.
    """
    files = _weight_files(folder)
    known = find(_key_of(folder, files), _shapes(_read_tensors(files)))
    return Fingerprint(known) if known is not None else None


def weights_key(folder: Path) -> str:
    """What stands for the weights in a checkpoint folder, without reading all of them.

    Raises:
        CheckpointError: The folder holds no safetensors weights.
    """
    return _key_of(folder, _weight_files(folder), content_key_of)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint folder, from the files' headers alone.

    Raises:
        CheckpointError: The folder holds no safetensors weights, or a damaged file.
    """
    return _shapes(_read_tensors(_weight_files(folder)))


def _shapes(tensors: Iterable[StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors}


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would load: the one, else those that the index names, else all."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.is_file():
        return [one]
    files = _indexed_files(index) if index.is_file() else sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            str(folder), [f"{quoted(name)} is named by {index.name} and not there" for name in missing]
        )
    if not files:
        raise CheckpointError(str(folder), ["it holds no *.safetensors weights"])
    return files


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = set(parse_json(index.read_bytes())["weight_map"].values())
        if not all(isinstance(name, str) and re.fullmatch(r"[\w.-]{1,200}", name) for name in names):
            raise ValueError("it names something other than files beside it")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(str(index), [f"it is no index of weights: {error}"]) from error
    return sorted(index.parent / name for name in names)


def _read_tensors(files: Iterable[Path]) -> list[StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            own = read_header(file)[0]
        except (ValueError, OSError) as error:
            raise CheckpointError(str(file), [f"it is no sound safetensors file: {error}"]) from error
        twice = [tensor.name for tensor in own if tensor.name in tensors]
        if twice:
            raise CheckpointError(str(file), [f"{quoted(twice[0])} is in another of its files, too"])
        tensors |= {tensor.name: tensor for tensor in own}
    return list(tensors.values())


def _key_of(folder: Path, files: Iterable[Path], key: Callable[[Iterable[Path]], str] = key_of) -> str:
    try:
        return key(files)
    except OSError as error:
        raise CheckpointError(str(folder), [f"its weights cannot be read: {error.strerror or error}"]) from error


def _read_record(tensor: StoredTensor) -> TensorRecord:
    single, half = hashlib.sha256(), hashlib.sha256()
    survives, square, sketch = tensor.is_float, 0.0, np.zeros(SKETCH_BUCKETS)
    for chunk in tensor.chunks():
        single.update(chunk.data)
        if not tensor.is_float:
            continue
        if survives:
            with np.errstate(over="ignore"):
                halved = chunk.astype(np.float16)
            survives = bool(np.array_equal(halved.astype(np.float32), chunk))
            half.update(halved.data)
        square += float(np.dot(chunk, chunk))
        sketch += _sketch_chunk(chunk)
    kind = "half" if survives else "single" if tensor.is_float else tensor.dtype
    values = half if survives else single
    digest = hashlib.sha256(f"{kind} {tensor.shape}".encode() + values.digest()).hexdigest()[:32]
    # As it is kept, so that a fingerprint just read and one read before are equal.
    return TensorRecord(tensor.shape, digest, math.sqrt(square), sketch.astype("<f4").astype(np.float64))


def _sketch_chunk(chunk: np.ndarray) -> np.ndarray:
    """CountSketch (Charikar et al., 2002): every value is added to, or taken from, one bucket.

    ``CHUNK_VALUES`` is a multiple of the block whose places and signs are repeated, so blocks begin at equal places.
    """
    places, signs = _hashes()
    total = np.zeros(SKETCH_BUCKETS)
    for number, start in enumerate(range(0, len(chunk), _SKETCH_BLOCK)):
        block = chunk[start : start + _SKETCH_BLOCK]
        if len(block) < _SKETCH_BLOCK:
            block = np.concatenate([block, np.zeros(_SKETCH_BLOCK - len(block), np.float32)])
        own = (block[places] * signs).reshape(-1, SKETCH_BUCKETS).sum(axis=0, dtype=np.float64)
        total += np.roll(own, number) if number % 2 else -np.roll(own, number)
    return total


@cache
def _hashes() -> tuple[np.ndarray, np.ndarray]:
    """For each place of a block the value that goes there, and its sign; buckets are the columns."""
    rng = np.random.default_rng(_SKETCH_SEED)
    places = rng.permutation(_SKETCH_BLOCK)
    return places, rng.choice(np.array([-1, 1], np.float32), _SKETCH_BLOCK)


def _signs_of(name: str) -> np.ndarray:
    """Signs of a tensor's buckets, so that equal changes of several tensors do not add up or cancel."""
    bits = np.unpackbits(np.frombuffer(hashlib.sha256(name.encode()).digest()[: SKETCH_BUCKETS // 8], np.uint8))
    return bits.astype(np.float64) * 2 - 1
