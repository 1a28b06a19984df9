"""What is trained with when nobody says: as before on drawn scenes, the image path as well on other pictures."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorax_vlm.adapters.recipe import RECIPES, Recipe, count_by_component
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import get_model_entry, list_models
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import Skill, answer, caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import linear_names
from lorax_vlm.training.defaults import question_config, skill_config, skill_recipe
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workshop.orders import orders_by_name, usual

MINIS = [entry.name for entry in list_models() if entry.miniature]
# What the published figures on drawn scenes were made with: steps, rate, evaluations, and 64 rows, one per image.
ON_SCENES = {
    "blip2-opt-mini": (700, 1.5e-3, 100),
    "blip2-flan-mini": (900, 1e-3, 100),
    "instructblip-mini": (600, 1.5e-3, 100),
    "vilt-mini": (420, 2e-3, 70),
}


@pytest.mark.parametrize("name", MINIS)
def test_drawn_scenes_are_trained_on_as_before(name: str) -> None:
    entry = get_model_entry(name)
    steps, rate, every = ON_SCENES[name]
    expected = TrainConfig(steps, 64, learning_rate=rate, eval_every=every, patience=None)
    assert usual(entry, answer("counting"))[1:] == (RECIPES["heavy"], expected)


@pytest.mark.parametrize("name", MINIS)
def test_own_pictures_are_learnt_to_be_seen(name: str, load_shared: Callable[[str], LoadedModel]) -> None:
    base = load_shared(name)
    recipe = skill_recipe(base.entry, answer("shapes"), own_data=True)
    sites = count_by_component(recipe.sites(base.family.name, linear_names(base.model)))
    seen = {"encoder"} if name == "vilt-mini" else {"vision", "qformer", "projection", "lm"}
    assert seen <= sites.keys()
    assert question_config(base.entry, own_data=True) != question_config(base.entry)


@pytest.mark.parametrize("name", ["blip2-opt-2.7b", "instructblip-vicuna-7b", "vilt-b32-finetuned-vqa"])
@pytest.mark.parametrize("own_data", [False, True])
def test_full_size_checkpoints_keep_their_image_path(name: str, own_data: bool) -> None:
    data = Path("mine") if own_data else None
    assert usual(get_model_entry(name), answer("counting"), data=data)[1:] == (RECIPES["heavy"], TrainConfig())


def test_what_is_given_stays() -> None:
    entry, own, few = get_model_entry("blip2-opt-mini"), Recipe("own", 2, ("lm-qv",)), TrainConfig(max_steps=3)
    skill, data = answer("kinds"), Path("mine")
    assert usual(entry, skill, data=data, recipe=own, config=few)[1:] == (own, few)
    assert usual(entry, skill, data=data, recipe="light", config=few)[1] == RECIPES["light"]
    with pytest.raises(UsageError, match="seeing, portable"):
        usual(entry, skill, data=data, recipe="all", config=few)


@pytest.mark.parametrize(("skill", "own"), [(caption("concise"), None), (answer("kinds"), Path("mine"))])
def test_some_settings_change_the_usual_ones_and_leave_the_others(skill: Skill, own: Path | None) -> None:
    entry = get_model_entry("blip2-opt-mini")
    expected = skill_config(entry, skill, own_data=own is not None)
    changed = usual(entry, skill, data=own, config={"samples": 3, "max_steps": 7})[2]
    assert changed == dataclasses.replace(expected, samples=3, max_steps=7)
    assert changed.batch_size == expected.batch_size != TrainConfig().batch_size
    with pytest.raises(UsageError, match="no training setting 'steps'; known: max_steps, "):
        usual(entry, skill, data=own, config={"steps": 7})


def test_settings_of_several_are_for_all_or_by_name() -> None:
    def order(name: str, word: str, **wanted: Any) -> Any:
        return name, wanted["config"]

    make: Any = order
    few, names = TrainConfig(max_steps=3), {"a": "x", "samples": "y"}
    assert orders_by_name(make, names, None, {"max_steps": 7}) == [
        ("a", {"max_steps": 7}),
        ("samples", {"max_steps": 7}),
    ]
    assert orders_by_name(make, names, None, {"a": few, "samples": None}) == [("a", few), ("samples", None)]
    with pytest.raises(UsageError, match="config says nothing of 'a'"):
        orders_by_name(make, names, None, {"samples": few})
    entry = get_model_entry("blip2-opt-mini")
    with pytest.raises(UsageError, match="no training setting 'steps'; known: max_steps, "):
        orders_by_name(lambda name, word, **wanted: usual(entry, caption(word), **wanted), names, None, {"steps": 7})  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("name", "scenes", "own", "rate"),
    [("blip2-opt-mini", 200, 600, 8e-3), ("blip2-flan-mini", 600, 1800, 3e-3), ("instructblip-mini", 400, 1200, 4e-3)],
)
def test_captions_of_own_pictures_get_more_steps_than_scenes(name: str, scenes: int, own: int, rate: float) -> None:
    """On scenes as the published figures were made; of own pictures captions were gibberish after so few steps."""
    entry = get_model_entry(name)
    drawn, given = usual(entry, caption("concise"))[2], usual(entry, caption("mine"), data=Path("mine"))[2]
    assert (drawn.max_steps, drawn.learning_rate, drawn.patience) == (scenes, rate, None)
    assert (given.max_steps, given.learning_rate, given.patience) == (own, rate, 4)
    system = BLIP2CaptioningSystem(name)
    assert [system.default_config(), system.default_config(own_data=True)] == [drawn, given]


def test_the_system_tells_own_data_from_scenes(tmp_path: Path) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    images = [Image.new("RGB", (8, 8), (60 * shade, 0, 0)) for shade in range(4)]
    examples = [answered(image, "What is it?", ["dark"], f"row {i}") for i, image in enumerate(images)]
    splits = DataSplits(examples[:2], examples[2:], "four")
    own, drawn = system.order("blip2_opt", "x", "kinds", data=splits), system.order("blip2_opt", "x", "counting")
    assert (own.recipe.name, drawn.recipe.name) == ("seeing", "heavy")
    assert own.config == system.default_config("blip2_opt", own_data=True)
    assert drawn.config == system.default_config("blip2_opt")
    assert system.order("vilt", "x", "kinds", data=splits).recipe.name == "heavy"
