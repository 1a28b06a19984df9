"""The scenes that a transfer between miniatures looks at."""

import statistics
from collections.abc import Callable

import pytest

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scene_tasks import TASKS, task_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.exchange.scene_data import scene_transfer_data
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.exchange.transfer_data import judge_all, judge_by_target
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.training.config import TrainConfig

FEW = TrainConfig(max_steps=2, batch_size=8)


def of(task: str, **training: object) -> Manifest:
    return Manifest(name="one", task=task, style=task, base=None, trained=True, training=training)


def test_about_somebodys_pictures_scenes_say_nothing() -> None:
    with pytest.raises(UsageError, match=r"'one' was trained on pictures of yours.*--unlabelled FOLDER"):
        scene_transfer_data(of("vqa", images_known_by=["file"]), captions=True, config=FEW)
    assert scene_transfer_data(of("vqa", images_known_by=["drawing"]), captions=True, config=FEW).unlabelled


@pytest.mark.parametrize("task", TASKS)
def test_no_scene_is_both_learnt_from_and_measured_with(task: str) -> None:
    data, splits = scene_transfer_data(of(task), captions=True, config=FEW), task_splits(task)
    assert len(data.unlabelled) == 1.25 * FEW.max_steps * FEW.batch_size
    assert all(not example.target for example in data.unlabelled)
    trained = {example.name for example in (*splits.train, *splits.validation)}
    looked_at = {example.name for example in (*data.unlabelled, *data.development, *data.off_task)}
    assert looked_at
    assert not trained & looked_at


@pytest.mark.parametrize(
    ("base", "task"), [("blip2-opt-mini", "captioning"), ("blip2-flan-mini", "vqa"), ("vilt-mini", "complex_reasoning")]
)
def test_the_other_task_is_one_that_can_be_lost(
    base: str, task: str, load_shared: Callable[[str], LoadedModel], store: AdapterStore
) -> None:
    """A base that scores nothing without an adapter could not show a side effect."""
    loaded = load_shared(base)
    library = AdapterLibrary(loaded.entry, lambda: loaded, store)
    others = scene_transfer_data(of(task), captions=loaded.entry.captions, config=FEW).off_task[:40]
    entry = loaded.entry
    settings = entry.answer_settings if others[0].question else entry.caption_settings
    scores = judge_all(judge_by_target, others, answer(library, None, others, settings))
    library.restore_base()
    assert statistics.mean(scores) > 0.6
