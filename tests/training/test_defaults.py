"""What is trained with when nobody says: as before on drawn scenes, the image path as well on other pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.adapters.recipe import RECIPES, Recipe, count_by_component
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import get_model_entry, list_models
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import linear_names
from lorax_vlm.training.defaults import question_config, question_defaults, question_recipe
from lorax_vlm.vqa import VQASystem

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
    assert question_defaults(entry, None, None, own_data=False) == (RECIPES["heavy"], expected)


@pytest.mark.parametrize("name", MINIS)
def test_own_pictures_are_learnt_to_be_seen(name: str, load_shared: Callable[[str], LoadedModel]) -> None:
    base = load_shared(name)
    recipe = question_recipe(base.entry, own_data=True)
    sites = count_by_component(recipe.sites(base.family.name, linear_names(base.model)))
    seen = {"encoder"} if name == "vilt-mini" else {"vision", "qformer", "projection", "lm"}
    assert seen <= sites.keys()
    assert question_config(base.entry, own_data=True) != question_config(base.entry)


@pytest.mark.parametrize("name", ["blip2-opt-2.7b", "instructblip-vicuna-7b", "vilt-b32-finetuned-vqa"])
@pytest.mark.parametrize("own_data", [False, True])
def test_full_size_checkpoints_keep_their_image_path(name: str, own_data: bool) -> None:
    assert question_defaults(get_model_entry(name), None, None, own_data=own_data) == (RECIPES["heavy"], TrainConfig())


def test_what_is_given_stays() -> None:
    entry, own, few = get_model_entry("blip2-opt-mini"), Recipe("own", 2, ("lm-qv",)), TrainConfig(max_steps=3)
    assert question_defaults(entry, own, few, own_data=True) == (own, few)
    assert question_defaults(entry, "light", few, own_data=True)[0] == RECIPES["light"]
    with pytest.raises(UsageError, match="seeing, portable"):
        question_defaults(entry, "all", few, own_data=True)


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
