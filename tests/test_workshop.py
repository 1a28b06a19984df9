"""What an adapter was made of, what is checked before it is trained, and what is stored when something fails."""

import dataclasses
import io
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.recipe import Recipe, change_recipe, get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import AdapterExists, DataError, PathError, PromptError, RunInUse, UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.runtime import bases
from lorax_vlm.skills import answer, caption
from lorax_vlm.training import joint
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint_trainer import JointTrainer
from lorax_vlm.training.progress import ProgressBar
from lorax_vlm.training.runs import held_run
from lorax_vlm.types import GenerationSettings
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workshop import making
from lorax_vlm.workshop.making import LEFT_OUT_FILE
from tests.adapters_for_tests import write_manifest, write_random_adapter

QUICK = TrainConfig(max_steps=2, batch_size=4, learning_rate=5e-3, eval_every=2, patience=None)
OPTIONS: dict[str, Any] = {"config": QUICK, "progress": False}


def folder(
    target: Path, scenes: list[Scene], style: str = "concise", first: str | None = None, held_out: int = 0
) -> Path:
    """Captioned images; the caption of the first may be another one, and the last may be said to be held out."""
    target.mkdir(exist_ok=True)
    rows = []
    for number, scene in enumerate(scenes):
        scene.image.save(target / f"{scene.seed}.png")
        text = first if first is not None and number == 0 else scene.caption(style)
        part = {"split": "validation" if number >= len(scenes) - held_out else "train"} if held_out else {}
        rows.append(json.dumps({"file_name": f"{scene.seed}.png", "caption": text} | part))
    (target / "metadata.jsonl").write_text("\n".join(rows))
    return target


@pytest.mark.parametrize("change", ["caption", "image", "rank", "dropout", "sites", "seed", "style"])
def test_anything_that_makes_another_adapter_is_noticed(
    change: str, system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    # The parts are said, or a changed image would be noticed by another division alone.
    data, recipe = folder(tmp_path / "photos", scenes, held_out=3), get_recipe("light")
    made = system.create_captioning_adapter("mine", "concise", recipe, data=data, **OPTIONS)
    assert system.create_captioning_adapter("mine", "concise", recipe, data=data, **OPTIONS) == made
    config, style = QUICK, "concise"
    if change == "caption":
        folder(tmp_path / "photos", scenes, first="corrected", held_out=3)
    elif change == "image":
        scenes[0].image.transpose(0).save(data / f"{scenes[0].seed}.png")
    elif change == "seed":
        config = dataclasses.replace(QUICK, seed=1)
    elif change == "style":
        style = "creative"
    else:
        changes: dict[str, Any] = {"rank": 2, "dropout": 0.1, "sites": ["lm-attention"]}
        recipe = dataclasses.replace(change_recipe(recipe, **{change: changes[change]}), name=recipe.name)
    with pytest.raises(AdapterExists):
        system.create_captioning_adapter("mine", style, recipe, data=data, config=config, progress=False)


def test_the_same_images_in_another_place_are_the_same_data(
    system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = system.create_captioning_adapter("mine", "concise", data=folder(tmp_path / "photos", scenes), **OPTIONS)
    monkeypatch.chdir(tmp_path)
    assert system.create_captioning_adapter("mine", "concise", data="photos", **OPTIONS) == made
    elsewhere = folder(tmp_path / "another place", scenes)
    assert system.create_captioning_adapter("mine", "concise", data=elsewhere, **OPTIONS) == made


@pytest.mark.parametrize("model", ["blip2_opt", "blip2_flan", "instructblip"])
def test_a_text_that_does_not_fit_is_found_before_the_run(model: str, scenes: list[Scene], tmp_path: Path) -> None:
    long = "red " * 700
    good = [Example(scene.image, "red", f"row {i}", question="What?") for i, scene in enumerate(scenes)]
    bad = [dataclasses.replace(good[3], target=long, name="long target"),
           dataclasses.replace(good[4], question=long, name="long question"),
           dataclasses.replace(good[5], target="half an emoji \ud83d", name="half target"),
           dataclasses.replace(good[6], question="half \udc00?", name="half question")]  # fmt: skip
    names = [example.name for example in bad]
    splits = DataSplits([*good[:8], *bad], good[8:], "mine")
    system = VQASystem("mini", store=tmp_path / "store")
    order = system.order(model, "x", "colors", data=splits, complexity="light", config=QUICK)
    with pytest.raises(DataError) as caught:
        system.train_orders(model, [order], progress=False)
    assert [problem.split(":")[0] for problem in caught.value.problems] == names
    skipping = dataclasses.replace(order, skip_bad_rows=True)
    (kept,) = system.train_orders(model, [skipping], progress=False)
    assert kept.manifest.training["data_identity"]["train"] == 8
    assert "4 malformed rows left out" in kept.manifest.training["data"]
    listed = system.training_curve(model, "x").with_name(LEFT_OUT_FILE).read_text().splitlines()
    assert [json.loads(line)["place"] for line in listed] == names


def test_an_adapter_is_asked_and_decoded_as_it_says(tmp_path: Path, scenes: list[Scene]) -> None:
    """One that writes long answers is not cut off where the base's answers end."""
    system = VQASystem("mini", store=tmp_path / "store")
    splits = skill_splits(answer("color"), 8, 4)
    stored = system.create_vqa_adapter("blip2_opt", "long", "color", "light", data=splits, **OPTIONS)
    wordy = GenerationSettings(max_new_tokens=40, min_new_tokens=20)
    changed = dataclasses.replace(stored.manifest, generation=wordy, prompt="Describe: {question}")
    system.store.add(stored.name, stored.folder, changed, replace=True)
    said = system.answer_questions([scenes[0].image] * 2, ["the scene"] * 2, "blip2_opt", ["long", None])
    assert said[0].tokens >= 20
    assert said[1].tokens <= 10
    assert system.answer_question(scenes[0].image, "the scene", "blip2_opt", "long", max_new_tokens=3,
                                  min_new_tokens=0).tokens <= 3  # fmt: skip
    captioning = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "store")
    assert captioning.list_adapters() == []
    with pytest.raises(PromptError, match="it answers questions"):
        captioning.caption_image(scenes[0].image, stored.name)
    with pytest.raises(PromptError, match="it answers questions"):
        captioning.evaluate_adapter(stored.name, "plain")


@pytest.mark.parametrize("how", ["alone", "together", "untrained"])
def test_a_store_that_cannot_be_written_is_found_before_any_work(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for work in ("train_adapter", "train_adapters", "write_untrained_adapter"):
        monkeypatch.setattr(making, work, lambda *_, **__: pytest.fail("it was worked on"))
    (tmp_path / "file").write_text("")
    system = VQASystem("mini", store=tmp_path / "file" / "store")
    splits = skill_splits(answer("color"), 8, 4)
    train: dict[str, Callable[[], object]] = {
        "alone": lambda: system.train_adapter("blip2_opt", "one", "color", data=splits, **OPTIONS),
        "together": lambda: system.train_adapters("blip2_opt", dict.fromkeys("ab", "color"), data=splits, **OPTIONS),
        "untrained": lambda: system.create_vqa_adapter("Salesforce/blip2-opt-2.7b", "one", "color"),
    }
    with pytest.raises(PathError, match="file"):
        train[how]()


def test_all_that_can_be_stored_is_stored_when_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    splits = skill_splits(answer("color"), 8, 4)
    tasks = {"one": "color", "two": "color", "three": "color"}
    original = type(system.store).add_all

    def add_all(self, additions: Sequence[Addition], **options: Any):
        if additions[0].name.endswith("two"):
            raise PathError("store", "no space left on device")
        return original(self, additions, **options)

    options: dict[str, Any] = {"data": dict.fromkeys(tasks, splits), "complexity": "light", **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr(type(system.store), "add_all", add_all)
        with pytest.raises(PathError, match="no space left"):
            system.train_adapters("blip2_opt", tasks, **options)
    assert system.store.names() == ["blip2-opt-mini.one", "blip2-opt-mini.three"]
    trained = []
    monkeypatch.setattr(JointTrainer, "training_step", lambda *_: trained.append(1))
    kept = system.train_adapters("blip2_opt", tasks, resume=True, **options)
    assert [(a.name.split(".")[1], a.version) for a in kept] == [("one", 1), ("two", 1), ("three", 1)]
    assert not trained, "the run was finished; what it made only had to be stored"


def test_a_name_that_is_being_trained_is_not_trained_twice(
    system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    data = folder(tmp_path / "photos", scenes)
    other_store = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "other")
    with held_run(system.workspace.workshop(system.model).run_dir("mine")):
        caught: list[BaseException] = []

        def train() -> None:
            try:
                system.train_adapter("mine", "concise", data=data, complexity="light", **OPTIONS)
            except RunInUse as error:
                caught.append(error)

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        assert len(caught) == 1
        other_store.train_adapter("mine", "concise", data=data, complexity="light", **OPTIONS)
    assert "mine" not in system.store


def test_recipes_by_their_parts() -> None:
    heavy = get_recipe("heavy")
    assert change_recipe(heavy) is heavy
    changed = change_recipe(heavy, rank=32, sites=["vision,qformer", "lm"])
    assert changed == Recipe("heavy, changed", 32, ("vision", "qformer", "lm-attention", "lm-mlp"))
    assert changed.effective_alpha == 64
    for wrong in ({"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match="must be"):
            change_recipe(heavy, **wrong)
    for wrong in ({"rank": 8.5}, {"rank": True}, {"rank": "8"}, {"alpha": "x"}, {"dropout": None}, {"dropout": True}):
        with pytest.raises(UsageError, match="must be a"):
            Recipe(**{"name": "x", "rank": 8, "groups": ("lm-qv",)} | wrong)  # type: ignore[arg-type]


def test_settings_by_name_are_of_all_that_are_trained(tmp_path: Path) -> None:
    styles = {"one": "plain", "two": "concise"}
    for config, said in (
        ({"one": QUICK}, "config says nothing of 'two'"),
        ({"one": QUICK, "two": None, "tow": QUICK}, "config names 'tow', which is not to be trained: one, two"),
    ):
        with pytest.raises(UsageError, match=said):
            BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path).train_adapters(styles, config=config)
        with pytest.raises(UsageError, match=said):
            VQASystem("mini", store=tmp_path).train_adapters("opt", dict.fromkeys(styles, "color"), config=config)
    for data, said in (
        ({"one": "photos"}, "data says nothing of 'two'"),
        ({"one": "photos", "two": None, "tow": "photos"}, "data names 'tow', which is not to be trained: one, two"),
    ):
        with pytest.raises(UsageError, match=said):
            BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path).train_adapters(styles, data=data)
        with pytest.raises(UsageError, match=said):
            VQASystem("mini", store=tmp_path).train_adapters("opt", dict.fromkeys(styles, "color"), data=data)


@pytest.mark.parametrize("how", ["alone", "together"])
def test_a_text_that_does_not_fit_is_left_out_where_that_is_asked_for(
    how: str, tmp_path: Path, scenes: list[Scene]
) -> None:
    data = folder(tmp_path / "photos", scenes, first="red " * 400)
    captions = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "store")
    options: dict[str, Any] = {"data": data, "complexity": "light", **OPTIONS}
    train: dict[str, Callable[..., object]] = {
        "alone": lambda **more: captions.train_adapter("mine", "concise", **options, **more),
        "together": lambda **more: captions.train_adapters({"mine": "concise", "own": "concise"}, **options, **more),
    }
    with pytest.raises(DataError, match="tokens"):
        train[how]()
    train[how](skip_bad_rows=True)
    assert captions.store.get("mine").manifest.trained


def test_questions_too(tmp_path: Path, scenes: list[Scene]) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    examples = [
        Example(scene.image, scene.background, str(scene.seed), question="why " * (400 if number == 0 else 1))
        for number, scene in enumerate(scenes)
    ]
    options: dict[str, Any] = {"data": DataSplits(examples[:9], examples[9:], "few"), "complexity": "light", **OPTIONS}
    with pytest.raises(DataError, match="tokens"):
        system.train_adapter("blip2_opt", "mine", "why", **options)
    assert system.train_adapter("blip2_opt", "mine", "why", skip_bad_rows=True, **options).manifest.trained


@pytest.mark.parametrize("how", ["created", "trained", "together", "exchanged", "merged"])
def test_a_taken_name_is_refused_before_a_base_is_loaded(
    how: str, mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(tmp_path / "store")
    for number, name in enumerate(("one", "two", "taken")):
        made = write_random_adapter(mini, tmp_path / name, seed=number)
        store.add(f"{mini.name}.{name}", made, write_manifest(mini, made, skill=answer("color"), prompt="{question}"))
    monkeypatch.setattr(bases, "load_model", lambda *_, **__: pytest.fail("a base was loaded"))
    vqa, exchange = VQASystem("mini", store=store.root), MultiModalLoRAExchange("mini", store=store.root)
    data = skill_splits(answer("color"), 8, 4)
    calls: dict[str, Callable[[], object]] = {
        "created": lambda: vqa.create_vqa_adapter("blip2_opt", "taken", "color", data=data, **OPTIONS),
        "trained": lambda: vqa.train_adapter("blip2_opt", "taken", "color", data=data, **OPTIONS),
        "together": lambda: vqa.train_adapters(
            "blip2_opt", dict.fromkeys(("new", "taken"), "color"), data=data, **OPTIONS
        ),
        "exchanged": lambda: exchange.create_adapter("blip2_opt", "taken", "vqa", data=data, **OPTIONS),
        "merged": lambda: exchange.merge_adapters([f"{mini.name}.one", f"{mini.name}.two"], "taken"),
    }
    with pytest.raises(AdapterExists, match="taken"):
        calls[how]()


def test_all_that_cannot_be_stored_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system = VQASystem("mini", store=tmp_path / "store")

    def add_all(self, additions: Sequence[Addition], **_: Any):
        raise PathError("store", f"no space for {additions[0].name}")

    monkeypatch.setattr(AdapterStore, "add_all", add_all)
    options: dict[str, Any] = {"data": skill_splits(answer("color"), 8, 4), "complexity": "light", **OPTIONS}
    with pytest.raises(PathError, match=r"no space for blip2-opt-mini\.one"):
        system.train_adapters("blip2_opt", dict.fromkeys(("one", "two"), "color"), **options)
    assert "no space for blip2-opt-mini.two" in caplog.text


def test_a_run_that_ended_before_its_curve_was_drawn_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    options: dict[str, Any] = {"data": skill_splits(answer("color"), 8, 4), "complexity": "light", **OPTIONS}
    tasks = dict.fromkeys(("one", "two"), "color")
    with monkeypatch.context() as patch:
        patch.setattr(joint, "draw_training_curve", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            system.train_adapters("blip2_opt", tasks, **options)
    kept = system.train_adapters("blip2_opt", tasks, resume=True, **options)
    assert [stored.manifest.trained for stored in kept] == [True, True]


class Meanwhile(ProgressBar):
    """Does something when a training has ended, and its result is not stored yet."""

    def __init__(self, do: Callable[[], object]) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._do = do

    def finished(self) -> None:
        super().finished()
        self._do()


@pytest.mark.parametrize("together", [False, True])
def test_what_was_stored_meanwhile_is_not_put_aside(
    together: bool, system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    data = folder(tmp_path / "photos", scenes)
    other = write_random_adapter(system.base, tmp_path / "other")
    add = partial(system.store.add, "mine", other, write_manifest(system.base, other, rank=8, sites={"lm": 12}))

    def train(**options: Any) -> None:
        wanted: dict[str, Any] = {"data": data, "complexity": "light", "config": QUICK, **options}
        if together:
            system.train_adapters({"mine": "concise", "yours": "plain"}, **wanted)
        else:
            system.train_adapter("mine", "concise", **wanted)

    with pytest.raises(AdapterExists):
        train(progress=Meanwhile(add))
    assert system.store.get("mine").version == 1
    assert not system.store.get("mine").manifest.training
    steps: list[int] = []
    listener = Meanwhile(lambda: None)
    listener.stepped = lambda step, losses: steps.append(step)  # type: ignore[method-assign, assignment]
    train(progress=listener, replace=True)
    assert system.store.get("mine").version == 2
    assert not steps, "what was trained had waited"


def test_one_name_is_trained_in_one_run_at_a_time(
    system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    data = folder(tmp_path / "photos", scenes)
    caught: list[BaseException] = []

    def train() -> None:
        try:
            system.train_adapters({"mine": "concise", "yours": "plain"}, data=data, complexity="light", **OPTIONS)
        except RunInUse as error:
            caught.append(error)

    with held_run(system.workspace.workshop(system.model).run_dir("mine")):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert len(caught) == 1


def test_a_finished_run_of_several_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever always says resume gets what is there; and a run measures all as often as one of them wants it."""
    system = VQASystem("mini", store=tmp_path / "store")
    few = dataclasses.replace(QUICK, max_steps=3)
    configs = {"a": few, "b": dataclasses.replace(few, eval_every=3)}
    orders = [system.order("blip2-opt-mini", name, "color", config=config) for name, config in configs.items()]
    made = system.train_orders("blip2-opt-mini", orders, progress=False)
    assert [a.manifest.training["config"]["eval_every"] for a in made] == [2, 2]
    monkeypatch.setattr(JointTrainer, "training_step", lambda *_: pytest.fail("it was finished"))
    again = system.train_orders("blip2-opt-mini", orders, progress=False, resume=True)
    assert [(a.name, a.version) for a in again] == [(a.name, 1) for a in made]


def test_a_loss_that_still_falls_is_said_of_ones_own_data(
    system: BLIP2CaptioningSystem,
    scenes: list[Scene],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And of fewer steps than usual on drawn scenes, of which the usual ones were tried."""
    usual = system.workspace.workshop(system.model).order("x", caption("concise")).config
    few = dataclasses.replace(usual, max_steps=6, eval_every=6)
    for name, data in (("usual", None), ("few", None), ("own", folder(tmp_path / "photos", scenes))):
        with monkeypatch.context() as patch:
            if name == "usual":
                patch.setattr("lorax_vlm.workshop.making.skill_config", lambda *_: few)
            made = system.train_adapter(name, "concise", data=data, config=few, progress=False)
        assert made.manifest.training["still_falling"]
        assert (f"{name!r}: the validation loss was still falling" in caplog.text) is (name != "usual")
