"""Arguments of another type than is meant, from Python: refused by name, whatever they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.asked import asked_examples
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import AdapterNotFound, DataError, LoraxError, PathError, UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem

NAMES: list[Any] = [5, b"one", Path("one"), True, ["one"], {"one"}, {"one": 1}, np.array(["one"]), np.zeros(2)]
QUICK = TrainConfig(max_steps=1, batch_size=4, eval_every=1, patience=None)
COLOR = "What color is the background?"


@pytest.mark.parametrize("name", NAMES, ids=lambda name: type(name).__name__)
def test_what_is_no_name_of_an_adapter(
    name: Any, mini: LoadedModel, system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    answering = VQASystem("mini", store=tmp_path / "store")
    image = scenes[0].image
    calls: list[Callable[[], object]] = [
        lambda: system.caption_image(image, name),
        lambda: system.caption_images([image], name),
        lambda: system.compare_captioning_styles(image, [name]),
        lambda: system.evaluate_adapter(name, count=1),
        lambda: answering.answer_questions([image], [COLOR], "blip2_opt", [name]),
        lambda: system.store.resolve(name),
        lambda: system.store.get(name),
        lambda: system.load_adapter(tmp_path, name),
        lambda: MultiModalLoRAExchange("mini", store=tmp_path / "m").load_adapter(tmp_path, name),
    ]
    for call in calls:
        with pytest.raises(LoraxError):
            call()


@pytest.mark.parametrize("models", [None, 5, b"mini", Path("mini"), True, ["mini"]], ids=repr)
def test_what_are_no_models(models: Any) -> None:
    with pytest.raises(LoraxError, match="models must be"):
        VQASystem(models)


@pytest.mark.parametrize("store", [5, b"store", ["store"], True], ids=repr)
def test_what_is_no_store(store: Any) -> None:
    for make in (lambda: VQASystem("mini", store=store), lambda: BLIP2CaptioningSystem("blip2-opt-mini", store=store)):
        with pytest.raises(LoraxError, match="store must be a folder"):
            make()


def test_captions_for_a_model_that_only_chooses(scenes: list[Scene], tmp_path: Path) -> None:
    """Nobody gave a task, and it has no styles: the message says neither."""
    captions = [Example(scene.image, scene.caption("plain"), "") for scene in scenes]
    system = VQASystem("mini", store=tmp_path / "store")
    with pytest.raises(DataError, match="vilt-mini answers questions and cannot write captions"):
        system.training_data("vilt", "x", DataSplits(captions[:6], captions[6:], "photos"))


ORDERS: list[tuple[dict[str, Any], str]] = [
    ({"style": 5}, "style must be a text"),
    ({"style": b"x"}, "style must be a text"),
    ({"config": 5}, "config must be a TrainConfig"),
    ({"config": {"steps": 1}}, "no training setting 'steps'"),
    ({"config": {"max_steps": "1"}}, "max_steps must be"),
    ({"complexity": []}, "Unknown recipe"),
    ({"complexity": 5}, "Unknown recipe"),
]


@pytest.mark.parametrize(("options", "reason"), ORDERS, ids=[str(options) for options, _ in ORDERS])
def test_orders_are_looked_at_before_they_are_worked_on(
    options: dict[str, Any], reason: str, system: BLIP2CaptioningSystem, scenes: list[Scene]
) -> None:
    captions = [Example(scene.image, scene.caption("plain"), "") for scene in scenes]
    with pytest.raises(LoraxError, match=reason):
        system.order("mine", **{"style": "x", **options}, data=DataSplits(captions[:6], captions[6:], "photos"))


def test_recipes_and_seeds() -> None:
    for odd in (1.5, "8", True, None, np.int64(8)):
        with pytest.raises(LoraxError, match="rank"):
            Recipe("r", rank=odd, groups=("lm-qv",))  # type: ignore[arg-type]
    for odd_name in (None, 5, b"r"):
        with pytest.raises(LoraxError, match="must be a text"):
            Recipe(odd_name, rank=4, groups=("lm-qv",))  # type: ignore[arg-type]
    with pytest.raises(LoraxError, match="must be a text"):
        Recipe("r", rank=4, groups=(5,))  # type: ignore[arg-type]
    with pytest.raises(LoraxError, match="below"):
        TrainConfig(seed=2**40)


def test_a_part_that_there_is_not_means_none(scenes: list[Scene]) -> None:
    splits = DataSplits([], [Example(scene.image, "a", "") for scene in scenes], "photos")
    for odd in ("held_out", "heldout", "tests", None, 5):
        with pytest.raises(LoraxError, match="split must be one of train, validation, test, held-out, all"):
            splits.select(odd)  # type: ignore[arg-type]
    assert len(list(splits.select("all"))) == 12


def test_a_text_is_no_list_of_answers(scenes: list[Scene]) -> None:
    images = [scene.image for scene in scenes[:3]]
    for odd in ("yes", b"yes", 5, [5, 5, 5], [None, "a", "b"]):
        with pytest.raises(LoraxError):
            asked_examples(images, ["q?"] * 3, odd)  # type: ignore[arg-type]


def test_nothing_to_validate_on(system: BLIP2CaptioningSystem, scenes: list[Scene]) -> None:
    captions = [Example(scene.image, scene.caption("plain"), "") for scene in scenes]
    with pytest.raises(DataError, match="both need at least one"):
        system.order("mine", "x", data=DataSplits(captions, [], "photos"))


@pytest.mark.parametrize("limit", ["x", -1, 0, 1.5, True], ids=repr)
def test_what_is_no_memory(limit: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for make in (
        lambda: VQASystem("mini", store=store, adapter_memory_bytes=limit),
        lambda: BLIP2CaptioningSystem("blip2-opt-mini", store=store, adapter_memory_bytes=limit),
    ):
        with pytest.raises(UsageError, match="adapter_memory_bytes must be a whole number of at least 1"):
            make()


def test_what_cannot_be_measured_with(system: BLIP2CaptioningSystem, tmp_path: Path) -> None:
    answering = VQASystem("mini", store=tmp_path / "store")
    odd: list[Any] = [5, [5], "x", (example for example in ())]
    for examples in odd:
        with pytest.raises(UsageError, match="examples must be a list of Example"):
            answering.evaluate("blip2_opt", examples=examples)
    for names in (5, "light", [5], {"light"}):
        with pytest.raises(UsageError, match="names must be a list of texts"):
            system.evaluate_adapters(names)  # type: ignore[arg-type]


BENCHMARKS: list[tuple[dict[str, Any], str]] = [
    ({"adapters": ["counting"]}, "adapters must be lists of texts by name"),
    ({"adapters": {"vlit": ["counting"]}}, "adapters has 'vlit', which is not asked; asked are vilt"),
    ({"adapters": {"vilt": "counting"}}, "must be a list of texts"),
    ({"models": "vilt"}, "models must be a list of texts"),
    ({"alone": "x"}, "alone must be a whole number"),
]


@pytest.mark.parametrize(("options", "reason"), BENCHMARKS, ids=[str(options) for options, _ in BENCHMARKS])
def test_benchmarks_that_cannot_be_run(
    options: dict[str, Any], reason: str, scenes: list[Scene], tmp_path: Path
) -> None:
    answering = VQASystem("mini", store=tmp_path / "store")
    with pytest.raises(UsageError, match=reason):
        answering.benchmark_models([scenes[0].image], [COLOR], **{"models": ["vilt"], **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("columns", 5),
        ("columns", {"image": 5}),
        ("columns", ["image"]),
        ("images", 5),
        ("annotations", 5),
        ("progress", 5),
        ("skip_bad_rows", "no"),
        ("streaming", "no"),
        ("group_by", 5),
    ],
)
def test_options_of_data_that_are_none(option: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=option):
        read_data(tmp_path, **{option: value})


ODD_FLAGS: list[Any] = ["no", 0, 1, None, np.zeros(2), []]


@pytest.mark.parametrize("flag", ODD_FLAGS, ids=repr)
def test_a_word_is_no_flag_anywhere(
    flag: Any, system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    """``replace="no"`` would replace."""
    answering, image = VQASystem("mini", store=tmp_path / "store"), scenes[0].image
    asked = asked_examples([image], [COLOR], ["red"], None)
    calls: dict[str, list[Callable[[], object]]] = {
        "replace": [
            lambda: system.create_captioning_adapter("x", "concise", replace=flag),
            lambda: system.train_adapter("x", "concise", replace=flag),
            lambda: system.train_adapters({"x": "concise", "y": "concise"}, replace=flag),
            lambda: answering.create_vqa_adapter("blip2_opt", "x", "color", replace=flag),
            lambda: system.store.add_all([], replace=flag),
        ],
        "resume": [
            lambda: system.train_adapter("x", "concise", resume=flag),
            lambda: system.train_adapters({"x": "concise", "y": "concise"}, resume=flag),
        ],
        "return_errors": [
            lambda: system.caption_images([image], return_errors=flag),
            lambda: answering.answer_questions([image], [COLOR], "blip2_opt", return_errors=flag),
        ],
        "include_seen": [lambda: answering.evaluate("blip2_opt", examples=asked, include_seen=flag)],
        "ablations": [lambda: answering.evaluate("blip2_opt", examples=asked, ablations=flag)],
    }
    for name, several in calls.items():
        for call in several:
            with pytest.raises(UsageError, match=f"{name} must be True or False"):
                call()


PLACES: list[Any] = [None, 5, True, b"x", ["x"], {}, np.zeros(2), "half \ud83d", "null \0", "~nobody_here/x"]


@pytest.mark.parametrize("place", PLACES, ids=repr)
def test_what_is_no_place(place: Any, system: BLIP2CaptioningSystem) -> None:
    exchange = MultiModalLoRAExchange("mini", store=system.store.root)
    for call in (
        lambda: system.save_adapter("x", place),
        lambda: system.load_adapter(place),
        lambda: exchange.save_adapter("x", place),
        lambda: exchange.load_adapter(place),
        lambda: exchange.write_report(place, []),
    ):
        with pytest.raises((UsageError, PathError), match=r"must be a path|half of a character|null character|home"):
            call()


ONE_TEXT: list[Any] = ["one", b"one", 5, True, Path("one"), {"one": 1}, [1]]


@pytest.mark.parametrize("texts", ONE_TEXT, ids=repr)
def test_one_text_is_no_list_of_texts(texts: Any, system: BLIP2CaptioningSystem, scenes: list[Scene]) -> None:
    """It would be read by letters: tags o, n and e."""
    exchange = MultiModalLoRAExchange("mini", store=system.store.root)
    for call in (
        lambda: system.store.tag("x", add=texts),
        lambda: system.store.tag("x", remove=texts),
        lambda: system.store.search(tags=texts),
        lambda: system.store.claim(texts),
        lambda: system.compare_captioning_styles(scenes[0].image, texts),
        lambda: system.evaluate_adapters(texts),
        lambda: exchange.compatibility_matrix(texts),
        lambda: exchange.compatibility_matrix(models=texts),
        lambda: exchange.merge_adapters(texts, "m"),
    ):
        with pytest.raises(UsageError, match="must be a list of texts"):
            call()


@pytest.mark.parametrize("version", [True, "1", 1.0, [1]], ids=repr)
def test_what_is_no_version(version: Any, system: BLIP2CaptioningSystem) -> None:
    system.create_captioning_adapter("x", "concise", complexity="light", config=QUICK, progress=False)
    for call in (lambda: system.store.rollback("x", version), lambda: system.store.set_alias("x", "a", version)):
        with pytest.raises(AdapterNotFound):
            call()


@pytest.mark.parametrize("config", ["", 0, [], "fast"], ids=repr)
def test_what_is_no_config(config: Any, system: BLIP2CaptioningSystem, tmp_path: Path) -> None:
    answering, exchange = VQASystem("mini", store=tmp_path), MultiModalLoRAExchange("mini", store=tmp_path)
    for call in (
        lambda: system.create_captioning_adapter("x", "concise", config=config),
        lambda: system.train_adapter("x", "concise", config=config),
        lambda: answering.create_vqa_adapter("blip2_opt", "x", "color", config=config),
        lambda: answering.train_adapter("blip2_opt", "x", "color", config=config),
        lambda: exchange.create_adapter("blip2_opt", "x", "vqa", config=config),
    ):
        with pytest.raises(UsageError, match="config must be a TrainConfig"):
            call()


@pytest.mark.parametrize("named", [None, 5, "concise", ["x"], ("x", "y"), np.zeros(2)], ids=repr)
def test_what_names_nothing_to_train(named: Any, system: BLIP2CaptioningSystem, tmp_path: Path) -> None:
    answering = VQASystem("mini", store=tmp_path / "store")
    for call in (lambda: system.train_adapters(named), lambda: answering.train_adapters("blip2_opt", named)):
        with pytest.raises(UsageError, match="What to train is named"):
            call()


@pytest.mark.parametrize("option", ["mixed_precision", "gradient_checkpointing"])
def test_a_word_is_no_flag(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be True or False, got 'no'"):
        TrainConfig(**{option: "no"})  # type: ignore[arg-type]
