"""Streams that are trained on: a killed run ends as if it had not been, and what was read stays known."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.noted import NotedStream
from lorax_vlm.data.problems import Problem
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import DataError, PathError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import caption
from lorax_vlm.training.batches import ExampleStream
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.joint_trainer import JointTrainer
from lorax_vlm.training.runs import NOTES_FILE, TrainingResult
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import AdapterTrainer, train_adapter
from lorax_vlm.workshop import making
from lorax_vlm.workshop.making import LEFT_OUT_FILE

CONFIG = TrainConfig(max_steps=10, batch_size=4, learning_rate=5e-3, eval_every=2, patience=None)


class Rows:
    """A stream of 11 examples, so that its readings do not end with a batch, and a row that is left out."""

    def __init__(self, examples: Any) -> None:
        self._examples, self.problems = examples, [Problem("set[3]", "the caption is empty")]

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return skill_splits(caption("concise"), 11, 6)


def streamed(splits: DataSplits) -> DataSplits:
    return dataclasses.replace(splits, train=NotedStream(Rows(splits.train)), source="stream")


def images(splits: DataSplits) -> set[str] | None:
    assert isinstance(splits.train, NotedStream)
    return None if splits.train.images is None else set(splits.train.images)


def run(mini: LoadedModel, splits: DataSplits, folder: Path, **options: Any) -> TrainingResult:
    return train_adapter(
        mini, AdapterPlan("adapter", get_recipe("light"), splits, CONFIG), folder, progress=False, **options
    )


class Stop(Exception):
    """Stands for any interruption."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after_step: int, trainer: type[AdapterTrainer] = AdapterTrainer) -> None:
    original = trainer.training_step

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == after_step:
            raise Stop
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", step)


def test_a_resumed_run_ends_with_the_same_adapter(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(mini, streamed(splits), tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt(patch, after_step=7)
        with pytest.raises(Stop):
            run(mini, streamed(splits), tmp_path / "run")
    data = streamed(splits)
    resumed = run(mini, data, tmp_path / "run", resume=True)
    assert resumed.best_validation_loss == straight.best_validation_loss
    for key, tensor in load_file(straight.folder / "adapter_model.safetensors").items():
        assert torch.equal(load_file(resumed.folder / "adapter_model.safetensors")[key], tensor), key
    every = {example.image_digest() for example in splits.train}
    assert images(data) == every
    again = streamed(splits)
    assert run(mini, again, tmp_path / "run", resume=True) == resumed
    assert images(again) == every, "it was finished before, so nothing is read"
    assert [problem.record() for problem in again.train.problems] == [Rows([]).problems[0].record()]
    (tmp_path / "run" / NOTES_FILE).unlink()
    unknown = streamed(splits)
    run(mini, unknown, tmp_path / "run", resume=True)
    assert images(unknown) is None, "unknown is not none"


def test_what_was_trained_on_before_a_stream_changed_is_known(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is known by its name only, and the one of today may not bring the rows of yesterday again."""
    first, second = splits.train[:6], splits.train[6:]
    with monkeypatch.context() as patch:
        interrupt(patch, after_step=4)
        with pytest.raises(Stop):
            run(mini, streamed(dataclasses.replace(splits, train=first)), tmp_path / "run")
    data = streamed(dataclasses.replace(splits, train=second))
    run(mini, data, tmp_path / "run", resume=True)
    assert images(data) == {example.image_digest() for example in splits.train}


def test_one_of_several_that_stopped_before_the_run_was_killed(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped adapter's stream is not read again, one that still learns is; finished, neither is."""
    idle = dataclasses.replace(CONFIG, learning_rate=1e-30, patience=1)
    light = get_recipe("light")

    def plans() -> list[AdapterPlan]:
        return [AdapterPlan(name, light, streamed(splits), config) for name, config in (("one", CONFIG), ("two", idle))]

    with monkeypatch.context() as patch:
        interrupt(patch, 8, JointTrainer)
        with pytest.raises(Stop):
            train_adapters(mini, plans(), tmp_path / "run", progress=False)
    every = {example.image_digest() for example in splits.train}
    for _ in range(2):
        known = plans()
        results = train_adapters(mini, known, tmp_path / "run", progress=False, resume=True)
        assert results["two"].steps < 8
        assert images(known[0].data) == every
        assert images(known[1].data) == every


def test_a_stored_adapter_says_what_it_saw_though_storing_took_two_attempts(
    splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "store")
    rows = dataclasses.replace(splits, train=Rows(splits.train), source="stream")
    options: dict[str, Any] = {"data": rows, "complexity": "light", "config": CONFIG, "progress": False}

    def full(*_: Any, **__: Any) -> None:
        raise PathError("store", "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(making, "keep", full)
        with pytest.raises(PathError, match="no space"):
            system.train_adapter("mine", "concise", **options)
    stored = system.train_adapter("mine", "concise", resume=True, **options)
    seen = read_adapter(stored.folder, "mine", stored.manifest.files).seen
    assert seen is not None
    assert seen.count == 11
    [left_out] = (system.training_curve("mine").parent / LEFT_OUT_FILE).read_text().splitlines()
    assert json.loads(left_out)["place"] == "set[3]"


@pytest.mark.parametrize("record", [None, {}, [], {"images": None, "problems": []}, {"images": ["1"], "problems": []}])
def test_notes_that_are_none_leave_it_unknown(record: Any, splits: DataSplits) -> None:
    stream = NotedStream(splits.train)
    assert stream.images is None, "nothing was read"
    stream.recall(record)
    assert list(stream)
    assert stream.images is None
    assert stream.record()["images"] is None, "nor do later notes claim it"


def test_batches_of_a_stream_go_on_over_its_end(splits: DataSplits) -> None:
    names = [example.name for example in splits.train]
    given = itertools.islice(ExampleStream(splits.train), 25)
    assert [example.name for example in given] == [*names, *names, *names[:3]]
    with pytest.raises(DataError, match="no row of it is left"):
        next(iter(ExampleStream(iter(()))))
