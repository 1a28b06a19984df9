"""Every recipe runs to its card, in two steps of each stage: what it makes loads, and can say something."""

import importlib
import sys
from pathlib import Path

import pytest

from lorax_vlm.data.scenes import make_scene
from lorax_vlm.models.loading import load_model
from lorax_vlm.types import GenerationSettings
from recipes import card, sides

RECIPES = ("blip2_opt_mini", "blip2_flan_mini", "instructblip_mini", "vilt_mini", "blip2_opt_mini_coco")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = importlib.import_module(f"recipes.{name}")
    steps = recipe.STEPS
    monkeypatch.setattr(recipe, "STEPS", dict.fromkeys(steps, 2) if isinstance(steps, dict) else 2)
    monkeypatch.setattr(sides, "STEPS", 2)
    monkeypatch.setattr(card, "SCENES", 8)
    out = tmp_path / name.replace("_", "-")
    arguments = ["--out", out, "--cache", tmp_path / "scenes", "--scenes", "128"]
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    recipe.main()
    assert (out / "README.md").is_file()
    base = load_model(str(out))
    features = base.family.encode_images(base.model, base.family.prepare([make_scene(1).image]), ["what is it?"])
    said = base.family.generate(base.model, features, ["what is it?"], GenerationSettings(max_new_tokens=3))
    assert len(said) == 1


def test_all_recipes_are_tried() -> None:
    made = {path.stem for path in Path(card.__file__).parent.glob("*mini*.py")} - {"miniature"}
    assert made == set(RECIPES)
