"""A fingerprint that was kept is used for the very weights it was read from, and for no others."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.description import describe_checkpoint
from lorax_vlm.models.fingerprint import find_fingerprint, read_fingerprint
from lorax_vlm.models.loading import LoadedModel, load_model

SIDE = 600


def write(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"qformer.w": torch.full((SIDE, SIDE), value)}, folder / "model.safetensors")
    return folder / "model.safetensors"


def overwrite(file: Path, first: int, last: int | None) -> None:
    data = bytearray(file.read_bytes())
    data[first:last] = bytes(len(data[first:last]))
    file.write_bytes(data)


def replace(file: Path) -> None:
    other = write(file.parent / "other", 2.0)
    os.replace(other, file)


CHANGES: dict[str, Callable[[Path], None]] = {
    "the last numbers": lambda file: overwrite(file, -400, None),
    "numbers in the middle": lambda file: overwrite(file, SIDE * SIDE, SIDE * SIDE + 4096),
    "the first number": lambda file: overwrite(file, -SIDE * SIDE * 4, -SIDE * SIDE * 4 + 4),
    "another file in its place": replace,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_of_the_same_size_and_time_are_read(change: Callable[[Path], None], tmp_path: Path) -> None:
    file = write(tmp_path / "base")
    times = file.stat()
    before = read_fingerprint(file.parent).components
    size = file.stat().st_size
    change(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync, tar and cp -p leave it
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (size, times.st_mtime_ns)
    assert find_fingerprint(file.parent) is None
    assert read_fingerprint(file.parent).components != before


def test_without_a_clock_the_blocks_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One path, size, number and time for two files, as in images of containers: only what is in them differs."""

    class Frozen:
        def __init__(self, status: os.stat_result) -> None:
            self.st_mode, self.st_size, self.st_dev, self.st_ino = status.st_mode, status.st_size, 1, 1
            self.st_mtime_ns = self.st_ctime_ns = 0

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **options: Frozen(stat(self, **options)))
    file = write(tmp_path / "base")
    before = read_fingerprint(file.parent).components
    assert find_fingerprint(file.parent) is not None
    write(tmp_path / "base", 2.0)
    assert read_fingerprint(file.parent).components != before


def test_reading_anew_does_not_trust_what_was_kept(tmp_path: Path, isolated_home: Path) -> None:
    file = write(tmp_path / "base")
    right = read_fingerprint(file.parent).components
    (kept,) = (isolated_home / "fingerprints").iterdir()
    rows = json.loads(kept.read_text())
    rows["tensors"]["qformer.w"][1] = "0" * 32
    kept.write_text(json.dumps(rows))
    assert read_fingerprint(file.parent).components != right, "the record is used"
    assert read_fingerprint(file.parent, anew=True).components == right
    assert read_fingerprint(file.parent).components == right, "and corrected"


BROKEN = ("", "{", "[]", "[[[[", '{"tensors": []}', '{"tensors": {"qformer.w": [[1], "0", 1, ""]}}', '{"tensors": {}}')


@pytest.mark.parametrize("content", BROKEN)
def test_a_record_that_is_none_is_made_anew(content: str, tmp_path: Path, isolated_home: Path) -> None:
    file = write(tmp_path / "base")
    right = read_fingerprint(file.parent).components
    (kept,) = (isolated_home / "fingerprints").iterdir()
    kept.write_text(content)
    assert find_fingerprint(file.parent) is None
    assert read_fingerprint(file.parent).components == right


def test_what_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "base")
    with pytest.raises(CheckpointError, match="changed while they were read"):
        read_fingerprint(file.parent, lambda done, total: overwrite(file, -400, None))


def test_a_home_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, isolated_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    isolated_home.write_text("a file")
    assert read_fingerprint(write(tmp_path / "base").parent).components
    assert "cannot be kept" in caplog.text


# --- which files are a base's weights ---------------------------------------------------------------------------------


@pytest.fixture
def copied(mini: LoadedModel, tmp_path: Path) -> Path:
    return shutil.copytree(mini.folder, tmp_path / "copied")


def test_files_that_are_not_loaded_do_not_count(copied: Path, mini: LoadedModel) -> None:
    file = copied / "model.safetensors"
    other = {name: tensor * 2 for name, tensor in load_file(file).items()}
    save_file(other, copied / "zz.safetensors", metadata={"format": "pt"})
    assert read_fingerprint(copied).components == mini.fingerprint.components
    assert load_model(str(copied)).fingerprint.components == mini.fingerprint.components


def test_the_index_says_which_parts_count(copied: Path, mini: LoadedModel) -> None:
    file = copied / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    file.unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: tensors[name] for name in own}, copied / part, metadata={"format": "pt"})
    save_file({name: tensors[name] * 2 for name in names}, copied / "c.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is in another of its files, too"):
        read_fingerprint(copied)
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: part for part, own in parts.items() for name in own}}))
    assert read_fingerprint(copied).components == mini.fingerprint.components
    for wrong in ("{", '{"weight_map": {"a": "../b"}}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "gone"}}'):
        index.write_text(wrong)
        with pytest.raises(CheckpointError):
            read_fingerprint(copied)


def test_a_base_whose_files_are_exchanged_does_not_get_their_fingerprint(copied: Path) -> None:
    base = load_model(str(copied))
    file = copied / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="were written to since it was loaded"):
        _ = base.fingerprint


def test_a_base_with_an_adapter_in_its_folder_is_refused(copied: Path) -> None:
    """transformers would put that adapter on the base, which would then answer otherwise than its weights say."""
    (copied / "adapter_config.json").write_text("{}")
    for read in (lambda: load_model(str(copied)), lambda: describe_checkpoint(copied, "copied")):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json is in it"):
            read()
