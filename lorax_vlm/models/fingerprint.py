"""Which weights a base has: a digest of every tensor, rolled up per component. No torch.

PEFT does not check the base: an adapter loads without a word on any model of the same shapes. The fingerprint makes
"same shapes, other weights" visible, and says how far apart two bases are. Reading all weights of a large checkpoint
takes a while; the result is kept and used again as long as its files stay as they are.
"""

import base64
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.components import group_by_component
from lorax_vlm.models.tensor_files import StoredTensor, read_header
from lorax_vlm.settings import fingerprints_dir

SKETCH_BUCKETS = 64
_SKETCH_SEED = 20_260_101
_SKETCH_BLOCK = 2**16
_FORMAT = 2

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
class TensorRecord:
    """One tensor of a base."""

    shape: tuple[int, ...]
    digest: str
    """SHA-256 of its values in half precision when they survive it, else in single: in which precision they are stored
    does not matter."""
    norm: float
    sketch: np.ndarray
    """``SKETCH_BUCKETS`` numbers whose difference between two tensors has about the norm of the tensors' difference."""


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


def read_fingerprint(folder: Path, progress: Progress | None = None) -> Fingerprint:
    """The fingerprint of a checkpoint folder: the one kept from before, or read from all its weights in parallel.

    Raises:
        CheckpointError: The folder holds no safetensors weights, or a damaged file.
    """
    files = _weight_files(folder)
    known = find_fingerprint(folder)
    if known is not None:
        return known
    tensors = _read_tensors(files)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    records: dict[str, TensorRecord] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tensor, record in zip(tensors, pool.map(_read_record, tensors), strict=True):
            records[tensor.name] = record
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)
    found = Fingerprint(records)
    _keep(_kept_at(files), found)
    return found


def find_fingerprint(folder: Path) -> Fingerprint | None:
    """The fingerprint kept of a checkpoint folder whose files are still the same; nothing is computed.

    Raises:
        CheckpointError: The folder holds no safetensors weights.
    """
    path = _kept_at(_weight_files(folder))
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Fingerprint(
            {
                name: TensorRecord(
                    tuple(shape), digest, norm, np.frombuffer(base64.b64decode(sketch), "<f4").astype(np.float64)
                )
                for name, (shape, digest, norm, sketch) in stored["tensors"].items()
            }
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # half written by an older version: read it from the weights again
        path.unlink(missing_ok=True)
        return None


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a checkpoint folder, from the files' headers alone.

    Raises:
        CheckpointError: The folder holds no safetensors weights, or a damaged file.
    """
    return {tensor.name: tensor.shape for tensor in _read_tensors(_weight_files(folder))}


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(str(folder), ["it holds no *.safetensors weights"])
    return files


def _read_tensors(files: Iterable[Path]) -> list[StoredTensor]:
    tensors = []
    for file in files:
        try:
            tensors += read_header(file)[0]
        except ValueError as error:
            raise CheckpointError(str(file), [f"it is no sound safetensors file: {error}"]) from error
    return tensors


def _kept_at(files: Iterable[Path]) -> Path:
    facts = [str(_FORMAT)]
    for file in files:
        real = file.resolve()
        status = real.stat()
        facts.append(f"{real} {status.st_size} {status.st_mtime_ns}")
    return fingerprints_dir() / f"{hashlib.sha256(chr(10).join(facts).encode()).hexdigest()[:32]}.json"


def _keep(path: Path, fingerprint: Fingerprint) -> None:
    rows = {
        name: [list(r.shape), r.digest, r.norm, base64.b64encode(r.sketch.astype("<f4").tobytes()).decode()]
        for name, r in fingerprint.tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump({"tensors": rows}, file)
    os.replace(scratch, path)


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
