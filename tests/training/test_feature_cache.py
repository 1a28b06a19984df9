"""Features on disk are the features; whatever happens to the files, nothing wrong is ever read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.families.pictures import Features
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.paths import written_whole
from lorax_vlm.training import feature_cache
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.feature_cache import FeatureCache, encoder_digest, image_key
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter

CONFIG = TrainConfig(max_steps=4, batch_size=4, eval_every=2, learning_rate=1e-2, patience=None)


def filled(folder: Path, encoder: str = "e", rows: int = 3, start: int = 0, **options: int) -> FeatureCache:
    cache = FeatureCache(folder, encoder, **options)
    for index in range(start, start + rows):
        cache.put(f"key {index}", features(index))
    cache.flush()
    return cache


def features(number: int) -> Features:
    return Features(torch.full((2, 4), float(number)))


def equal(one: Features | None, other: Features) -> bool:
    return one is not None and torch.equal(one.values, other.values) and one.grid == other.grid


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    again = FeatureCache(tmp_path, "e")
    for one in (cache, again):
        assert len(one) == 3
        assert equal(one.get("key 2"), features(2))
        assert one.get("key 3") is None
    assert FeatureCache(tmp_path, "another encoder").get("key 2") is None


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    seen = Features(torch.randn(2, 4).bfloat16())
    cache = FeatureCache(tmp_path, "e")
    cache.put("k", seen)
    cache.flush()
    assert equal(FeatureCache(tmp_path, "e").get("k"), seen)


def test_images_of_different_sizes_share_a_segment(tmp_path: Path) -> None:
    """One, four and thirteen tiles of three tokens."""
    seen = {
        f"{tiles} tiles": Features(torch.randn(3 * tiles, 8), grid)
        for tiles, grid in ((1, ()), (4, (2, 2)), (13, (3, 4, 1)))
    }
    cache = FeatureCache(tmp_path, "e")
    for key, one in seen.items():
        cache.put(key, one)
    cache.flush()
    assert len(list(tmp_path.glob("e/*.safetensors"))) == 1
    again = FeatureCache(tmp_path, "e")
    assert all(equal(again.get(key), one) for key, one in seen.items())


def test_a_segment_is_written_when_enough_bytes_have_come_together(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(feature_cache, "SEGMENT_BYTES", 1000)
    cache = FeatureCache(tmp_path, "e")
    cache.put("small", Features(torch.zeros(1, 4)))
    cache.put("large", Features(torch.zeros(61, 4)))
    assert not list(tmp_path.glob("e/*.safetensors")), "992 bytes"
    cache.put("another", Features(torch.zeros(1, 4)))
    assert len(list(tmp_path.glob("e/*.safetensors"))) == 1


def test_a_damaged_segment_is_removed_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (segment,) = tmp_path.glob("e/*.safetensors")
    segment.write_bytes(segment.read_bytes()[:-8])
    assert len(FeatureCache(tmp_path, "e")) == 0
    assert "damaged and removed" in caplog.text
    assert not segment.exists()


def test_a_row_that_is_not_what_was_written_is_encoded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    (segment,) = tmp_path.glob("e/*.safetensors")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.write_bytes(data)
    cache = FeatureCache(tmp_path, "e")
    assert cache.get("key 0") is not None
    assert cache.get("key 2") is None
    assert "not what was written" in caplog.text
    assert cache.get("key 0") is None, "nothing of a damaged segment is trusted"


def test_a_segment_cut_short_while_it_is_open_ends_nothing(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    (segment,) = tmp_path.glob("e/*.safetensors")
    assert cache.get("key 0") is not None
    os.truncate(segment, segment.stat().st_size - 40)
    assert cache.get("key 2") is None


def test_a_cache_that_cannot_be_written_is_switched_off_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = filled(tmp_path)
    shutil.rmtree(tmp_path / "e")
    (tmp_path / "e").write_text("a file where the folder was")
    for number in range(3):
        cache.put(f"new {number}", features(1))
        cache.flush()
    assert cache.get("key 0") is None
    assert len([record for record in caplog.records if "not kept on disk any more" in record.message]) == 1
    (tmp_path / "file").write_text("")
    assert FeatureCache(tmp_path / "file", "e").get("key 0") is None


@pytest.mark.parametrize("damage", ["removed", "full"])
def test_a_training_ends_well_whatever_happens_to_its_cache(mini, scenes, tmp_path, monkeypatch, damage: str) -> None:
    """The cache is lost in the middle of a run."""
    original = FeatureCache.put

    def put(self: FeatureCache, key: str, features: Features) -> None:
        original(self, key, features)
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        if damage == "full":
            (tmp_path / "f").write_text("")

    monkeypatch.setattr(FeatureCache, "put", put)
    options = {"progress": False, "features_dir": tmp_path / "f"}
    result = train_adapter(
        mini, AdapterPlan("adapter", get_recipe("light"), splits_of(scenes), CONFIG), tmp_path / "run", **options
    )
    assert result.steps == CONFIG.max_steps
    assert result.folder.is_dir()


def test_a_process_killed_while_writing_leaves_nothing_to_read(tmp_path: Path) -> None:
    filled(tmp_path)
    with written_whole(tmp_path / "e" / "whole") as file:
        scratch = Path(shutil.copy(file.name, file.name[:-32] + "0" * 32))  # what a writer leaves that is killed here
    os.utime(scratch, (0, 0))
    assert len(FeatureCache(tmp_path, "e")) == 3
    assert not scratch.exists()


def test_segments_unused_longest_leave_when_the_budget_is_exceeded(tmp_path: Path) -> None:
    filled(tmp_path, rows=50)
    (old,) = tmp_path.glob("e/*.safetensors")
    os.utime(old, (1, 1))
    filled(tmp_path, "other", rows=50)
    (used,) = tmp_path.glob("other/*.safetensors")
    os.utime(used, (2, 2))
    budget = old.stat().st_size * 5 // 2
    cache = filled(tmp_path, rows=50, start=50, budget_bytes=budget)
    assert not old.exists()
    assert used.exists()
    assert cache.get("key 1") is None
    assert cache.get("key 60") is not None


def test_rows_whose_segment_another_process_removed_are_unknown(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "e")
    filled(tmp_path)
    cache = FeatureCache(tmp_path, "e")
    for path in tmp_path.glob("e/*.safetensors"):
        path.unlink()
    assert cache.get("key 0") is None
    assert cache.get("key 1") is None


WRITER = """
import sys, torch
from pathlib import Path
from lorax_vlm.models.families.pictures import Features
from lorax_vlm.training.feature_cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), "e")
for index in range(200):
    cache.put(f"key {index}", Features(torch.full((2, 4), float(index))))
    if index % 10 == 9:
        cache.flush()
"""


def test_two_processes_write_the_same_images(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    cache = FeatureCache(tmp_path, "e")
    assert len(cache) == 200
    assert all(equal(cache.get(f"key {i}"), features(i)) for i in range(200))
    assert not list(tmp_path.glob("e/*.tmp"))


def test_keys_tell_images_and_instructions_apart(scenes: list[Scene]) -> None:
    red, tall = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    keys = {image_key(red), image_key(tall), image_key(red, "a"), image_key(red, "b"), image_key(scenes[0].image)}
    assert len(keys) == 5
    assert image_key(red.copy()) == image_key(red)


def splits_of(scenes: list[Scene]) -> DataSplits:
    examples = [answered(s.image, "What is it?", ["red" if s.seed % 2 else "blue"], f"scene {s.seed}") for s in scenes]
    return DataSplits(examples[:8], examples[8:], "scenes").with_prompt("Question: {question} Short answer:")


@pytest.mark.parametrize("name", ["blip2-opt-mini", "instructblip-mini"])
def test_training_from_the_cache_is_the_same_training(name, load_shared, scenes, tmp_path, monkeypatch) -> None:
    base: LoadedModel = load_shared(name)
    splits, recipe = splits_of(scenes), get_recipe("light")
    losses = []
    for run, features in (("none", None), ("fills", tmp_path / "f"), ("reads", tmp_path / "f")):
        if run == "reads":
            monkeypatch.setattr(type(base.family), "encode_images", None)  # every image must come from the cache
        result = train_adapter(
            base, AdapterPlan("adapter", recipe, splits, CONFIG), tmp_path / run, progress=False, features_dir=features
        )
        losses.append([row["eval_loss"] for row in result.history if "eval_loss" in row])
    assert losses[0] == losses[1] == losses[2]
    assert len(FeatureCache(tmp_path / "f", encoder_digest(base))) == len(scenes)


def test_an_adapter_of_the_image_path_is_not_trained_from_the_cache(mini, scenes, tmp_path) -> None:
    recipe = Recipe("sees", rank=2, groups=("lm-qv", "qformer"))
    train_adapter(
        mini,
        AdapterPlan("adapter", recipe, splits_of(scenes), CONFIG),
        tmp_path / "r",
        progress=False,
        features_dir=tmp_path / "f",
    )
    assert not (tmp_path / "f").exists()
