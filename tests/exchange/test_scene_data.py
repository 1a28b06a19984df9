"""The scenes that a transfer between miniatures looks at."""

import statistics
from collections.abc import Callable

import pytest

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.data.world.skills import skill_examples, skill_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.exchange.scene_data import DEVELOPMENT, UNSEEN_FROM, scene_transfer_data
from lorax_vlm.exchange.teacher import answer as answers_of
from lorax_vlm.exchange.transfer_data import judge_all, judge_by_target
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import EXCHANGE_TASKS, Skill, answer, caption
from lorax_vlm.training.config import TrainConfig

FEW = TrainConfig(max_steps=2, batch_size=8)


def of(task: str, **training: object) -> Manifest:
    return Manifest(name="one", skill=EXCHANGE_TASKS[task], base=None, trained=True, training=training)


def test_about_somebodys_pictures_scenes_say_nothing() -> None:
    with pytest.raises(UsageError, match=r"'one' was trained on pictures of yours.*--unlabelled FOLDER"):
        scene_transfer_data(of("vqa", images_known_by=["file"]), captions=True, config=FEW)
    assert scene_transfer_data(of("vqa", images_known_by=["drawing"]), captions=True, config=FEW).unlabelled


@pytest.mark.parametrize("task", EXCHANGE_TASKS)
def test_no_scene_is_both_learnt_from_and_measured_with(task: str) -> None:
    data, splits = scene_transfer_data(of(task), captions=True, config=FEW), skill_splits(EXCHANGE_TASKS[task])
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
    engine = BaseEngine(loaded, store)
    others = scene_transfer_data(of(task), captions=loaded.entry.captions, config=FEW).off_task[:40]
    entry = loaded.entry
    settings = entry.answer_settings if others[0].question else entry.caption_settings
    scores = judge_all(judge_by_target, others, answers_of(engine, None, others, settings))
    engine.restore_base()
    assert statistics.mean(scores) > 0.6


@pytest.mark.parametrize("skill", [caption("concise"), caption("creative"), answer("counting"), answer("reasoning")])
def test_an_adapter_is_judged_by_what_it_is_for(skill: Skill) -> None:
    """A style by its own captions and a kind of question by such questions, whichever system made the adapter."""
    manifest = Manifest(name="one", skill=skill, base=None, trained=True)
    data = scene_transfer_data(manifest, captions=True, config=FEW)
    expected = skill_examples(skill, "validation", DEVELOPMENT, start=UNSEEN_FROM)
    assert [(e.name, e.question, e.target) for e in data.development] == [
        (e.name, e.question, e.target) for e in expected
    ]
    if skill.asked:
        assert {example.kind for example in data.development} == {skill.name}
    else:
        scenes = [make_scene(int(example.name.removeprefix("scene "))) for example in data.development]
        assert [example.target for example in data.development] == [scene.caption(skill.name) for scene in scenes]


@pytest.mark.parametrize(
    ("skill", "reason"),
    [(None, "does not say what it is for"), (answer("shapes"), "is for answers, shapes, which drawn")],
)
def test_what_scenes_do_not_ask_for(skill: Skill | None, reason: str) -> None:
    with pytest.raises(UsageError, match=f"{reason}.*--unlabelled FOLDER"):
        scene_transfer_data(Manifest("one", skill, None, trained=True), captions=True, config=FEW)
