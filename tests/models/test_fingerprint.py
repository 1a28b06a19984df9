"""Fingerprints: digests that see every value and no storage detail, and a sketch that tells distances."""

import hashlib
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.fingerprint import Sketch, find_fingerprint, read_fingerprint
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.tensor_files import CHUNK_VALUES, read_header


def write(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tensors_digest_is_that_of_its_half_precision_bytes(tmp_path: Path, dtype: torch.dtype) -> None:
    """Worked out with hashlib and torch; values that all three precisions hold exactly."""
    values = torch.tensor([[1.0, -2.5, 0.0], [0.125, 96.0, -0.75]])
    (record,) = read_fingerprint(write(tmp_path / "m", {"w": values.to(dtype)})).tensors.values()
    halved = values.to(torch.float16).numpy().tobytes()
    expected = hashlib.sha256(b"half (2, 3)" + hashlib.sha256(halved).digest()).hexdigest()[:32]
    assert record.digest == expected
    assert record.norm == pytest.approx(float(values.norm()))


def test_values_that_half_precision_would_change_are_hashed_in_single(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 1.0 + 2**-20])
    (record,) = read_fingerprint(write(tmp_path / "m", {"w": values})).tensors.values()
    single = hashlib.sha256(values.numpy().tobytes()).digest()
    assert record.digest == hashlib.sha256(b"single (2,)" + single).hexdigest()[:32]


def test_one_changed_value_of_millions_is_seen(tmp_path: Path) -> None:
    values = torch.randn(3, CHUNK_VALUES - 7, generator=torch.Generator().manual_seed(0))
    before = read_fingerprint(write(tmp_path / "a", {"qformer.w": values, "vision_model.w": values[0].clone()}))
    values[2, -1] += 1e-3
    after = read_fingerprint(write(tmp_path / "b", {"qformer.w": values, "vision_model.w": values[0].clone()}))
    assert before.components["vision"] == after.components["vision"]
    assert before.components["qformer"] != after.components["qformer"]


@pytest.mark.parametrize("relative", [0.02, 0.15, 0.6])
def test_the_sketch_estimates_distances(relative: float) -> None:
    """Against the distance itself: over many pairs the estimate's error is about 9 %, and it has no bias."""
    from lorax_vlm.models import fingerprint

    rng = np.random.default_rng(1)
    errors = []
    for _ in range(60):
        first = rng.standard_normal(20_000).astype(np.float32)
        change = rng.standard_normal(20_000).astype(np.float32)
        second = first + relative * change * (np.linalg.norm(first) / np.linalg.norm(change))
        sketches = [fingerprint._sketch_chunk(values) for values in (first, second)]
        norm = float(np.linalg.norm(first))
        errors.append(Sketch(norm, sketches[0]).distance(Sketch(norm, sketches[1])) / relative - 1)
    assert abs(np.mean(errors)) < 0.04
    assert 0.05 < np.std(errors) < 0.13


def test_a_sketch_does_not_depend_on_how_a_tensor_is_read(tmp_path: Path) -> None:
    values = torch.randn(2 * CHUNK_VALUES + 5, generator=torch.Generator().manual_seed(3))
    from lorax_vlm.models import fingerprint

    whole = read_fingerprint(write(tmp_path / "m", {"w": values})).tensors["w"].sketch
    parts = [
        fingerprint._sketch_chunk(values[i : i + CHUNK_VALUES].numpy()) for i in range(0, len(values), CHUNK_VALUES)
    ]
    assert np.allclose(whole, sum(parts), rtol=1e-5)


def test_a_sketch_survives_its_text() -> None:
    sketch = Sketch(2.0, np.arange(64, dtype=np.float64))
    again = Sketch.from_text(2.0, sketch.to_text())
    assert again.distance(sketch) == 0
    for wrong in ("", "AAAA", "not base64!", Sketch(1.0, np.full(64, math.nan)).to_text()):
        with pytest.raises(ValueError):  # noqa: PT011
            Sketch.from_text(1.0, wrong)


def test_it_is_read_once_and_again_when_the_file_changes(
    mini: LoadedModel, tmp_path: Path, isolated_home: Path
) -> None:
    folder = write(tmp_path / "m", {"qformer.w": torch.ones(4)})
    assert find_fingerprint(folder) is None
    first = read_fingerprint(folder)
    found = find_fingerprint(folder)
    assert found is not None
    assert found.components == first.components
    assert found.sketch_of(["qformer.w"]).distance(first.sketch_of(["qformer.w"])) == 0
    (kept,) = (isolated_home / "fingerprints").iterdir()
    kept.write_text("{", encoding="utf-8")
    assert read_fingerprint(folder).components == first.components, "a damaged record is made anew"
    write(folder, {"qformer.w": torch.zeros(4)})
    assert find_fingerprint(folder) is None
    assert read_fingerprint(folder).components != first.components


def test_shards_are_one_checkpoint(mini: LoadedModel, tmp_path: Path) -> None:
    tensors = load_file(next(iter(mini.folder.glob("*.safetensors"))))
    names = sorted(tensors)
    folder = tmp_path / "sharded"
    folder.mkdir()
    save_file({name: tensors[name] for name in names[::2]}, folder / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[1::2]}, folder / "model-2.safetensors")
    assert read_fingerprint(folder).components == mini.fingerprint.components


# --- files of others --------------------------------------------------------------------------------------------------


def raw(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE_HEADERS = {
    "empty file": b"",
    "seven bytes": b"\0" * 7,
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": raw(b"{,}"),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "a list": raw([]),
    "an entry without offsets": raw({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "overlapping tensors": raw({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"\0" * 12),
    "a gap": raw({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"\0" * 12),
    "beyond the end": raw({"a": entry(0, 400, [100])}, b"\0" * 4),
    "bytes behind the tensors": raw({"a": entry(0, 4, [1])}, b"\0" * 9),
    "offsets backwards": raw({"a": entry(4, 0, [1])}, b"\0" * 4),
    "negative offsets": raw({"a": entry(-4, 0, [1])}, b"\0" * 4),
    "negative shape": raw({"a": entry(0, 4, [-1, -1])}, b"\0" * 4),
    "huge shape": raw({"a": entry(0, 4, [2**60, 2**60])}, b"\0" * 4),
    "shape of truths": raw({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4),
    "unknown type": raw({"a": entry(0, 4, [1], "F31")}, b"\0" * 4),
    "type that is a list": raw({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "a name twice": raw(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "metadata that are no texts": raw({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("content", HOSTILE_HEADERS.values(), ids=HOSTILE_HEADERS)
def test_hostile_headers_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011 (what matters is that nothing else is raised)
        read_header(path)
    with pytest.raises(CheckpointError):
        read_fingerprint(tmp_path)


def test_headers_of_the_library_are_read_as_it_does(mini: LoadedModel) -> None:
    path = next(iter(mini.folder.glob("*.safetensors")))
    expected = load_file(path)
    tensors, _ = read_header(path)
    assert {tensor.name: tensor.shape for tensor in tensors} == {k: tuple(v.shape) for k, v in expected.items()}
    for tensor in tensors[:5]:
        assert np.array_equal(tensor.read(), expected[tensor.name].float().numpy())
