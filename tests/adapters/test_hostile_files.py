"""Whatever is in an adapter's files, reading them ends in a sound adapter or in one of our errors."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorax_vlm.adapters.files import AdapterFiles, read_adapter_files
from lorax_vlm.adapters.manifest import MANIFEST_FILE, Manifest, read_manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.errors import AdapterError
from lorax_vlm.models.loading import LoadedModel
from tests.adapters_for_tests import write_random_adapter

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def sound(shared_mini: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_adapter(shared_mini, tmp_path_factory.mktemp("sound") / "light", "light")


@contextlib.contextmanager
def copy_of(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(shutil.copytree(folder, Path(scratch) / "it"))


def read(folder: Path) -> AdapterFiles | None:
    try:
        return read_adapter_files(folder, "it")
    except AdapterError:
        return None


@FUZZ
@given(position=st.integers(0, 6000), flip=st.integers(1, 255), keep=st.floats(0.01, 1))
def test_flipped_and_cut_weights(sound: Path, position: int, flip: int, keep: float) -> None:
    with copy_of(sound) as folder:
        data = bytearray((folder / WEIGHTS_FILE).read_bytes())
        data[position % len(data)] ^= flip
        (folder / WEIGHTS_FILE).write_bytes(data[: max(1, int(len(data) * keep))])
        files = read(folder)
        assert files is None or set(files.ranks) == {4}


@FUZZ
@given(header=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_invented_headers(sound: Path, header: bytes) -> None:
    with copy_of(sound) as folder:
        (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
        assert read(folder) is None


@FUZZ
@given(
    key=st.sampled_from(
        ["r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "peft_type", "bias"]
    ),
    value=JSON,
)
def test_invented_configurations(sound: Path, key: str, value: object) -> None:
    with copy_of(sound) as folder:
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**config, key: value}))
        read(folder)


@FUZZ
@given(value=JSON | st.dictionaries(st.sampled_from(["schema_version", "name", "task", "base", "trained"]), JSON))
def test_invented_manifests(value: object) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / MANIFEST_FILE).write_text(json.dumps(value))
        with contextlib.suppress(AdapterError):
            assert isinstance(read_manifest(Path(scratch), "it"), Manifest)
