"""Recipes: ranks and sites."""

import re

import pytest
from torch import nn

from lorax_vlm.adapters.recipe import RECIPES, Recipe, count_by_component, get_recipe, touches_image_path
from lorax_vlm.errors import UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.spec import ARCHITECTURES


def linear_names(base: LoadedModel) -> list[str]:
    return [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)]


def test_ranks() -> None:
    ranks = {name: recipe.rank for name, recipe in RECIPES.items()}
    assert ranks == {"light": 4, "medium": 8, "heavy": 16, "seeing": 16, "portable": 8}


# Worked by hand for three language layers, three vision layers, two Q-Former layers with two attentions each.
@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (("lm-qv",), {"lm": 6}),
        (("lm-attention",), {"lm": 12}),
        (("lm-attention", "lm-mlp"), {"lm": 18}),
        (("projection",), {"projection": 1}),
        (("qformer",), {"qformer": 8}),
        (("vision",), {"vision": 6}),
    ],
)
def test_sites_stay_in_their_component(mini: LoadedModel, groups: tuple[str, ...], expected: dict[str, int]) -> None:
    sites = Recipe("x", 4, groups).sites("blip2-opt", linear_names(mini))
    assert count_by_component(sites) == expected


def test_a_bare_name_would_leak_into_the_vision_encoder(mini: LoadedModel) -> None:
    bare = [name for name in linear_names(mini) if name.endswith(".fc1")]
    assert set(count_by_component(bare)) == {"lm", "vision"}
    assert set(count_by_component(Recipe("x", 4, ("lm-mlp",)).sites("blip2-opt", linear_names(mini)))) == {"lm"}


def test_every_pattern_is_bound_to_its_component() -> None:
    """It begins with that of a component, so that no other one's layers are called alike."""
    of_group = {"lm-qv": "lm", "lm-attention": "lm", "lm-mlp": "lm"}
    for family, row in ARCHITECTURES.items():
        for group, pattern in row.site_groups.items():
            component = "encoder" if family == "vilt" else of_group.get(group, group)
            begins = pattern.replace("\\", "").replace("(text_model|language_model)", "text_model")
            assert any(begins.startswith(own) for own, part in row.components.items() if part == component), pattern


def test_real_module_names_match() -> None:
    # Names of Salesforce/blip2-opt-2.7b, first and last layers.
    names = {
        "lm-attention": "language_model.model.decoder.layers.31.self_attn.out_proj",
        "lm-mlp": "language_model.model.decoder.layers.0.fc2",
        "vision": "vision_model.encoder.layers.38.self_attn.qkv",
        "qformer": "qformer.encoder.layer.10.crossattention.attention.value",
        "projection": "language_projection",
    }
    for group, name in names.items():
        assert re.fullmatch(ARCHITECTURES["blip2-opt"].site_groups[group], name)


def test_zero_matches_are_an_error() -> None:
    with pytest.raises(ValueError, match="'vision' match no module"):
        Recipe("x", 4, ("vision",)).sites("blip2-opt", ["language_model.model.decoder.layers.0.fc1"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get_recipe("enormous"), "Known: light, medium, heavy"),
        (lambda: Recipe("x", 0, ("lm-qv",)), "rank"),
        (lambda: Recipe("x", 4, ()), "at least one"),
        (lambda: Recipe("x", 4, ("lm-qv",), alpha=-1), "alpha"),
        (lambda: Recipe("x", 4, ("lm",)).pattern("blip2-opt"), "Unknown sites lm"),
        (lambda: Recipe("x", 4, ("lm-qv",)).pattern("gpt"), "Known: blip2-opt"),
    ],
)
def test_bad_recipes(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_alpha_defaults_to_twice_the_rank() -> None:
    assert Recipe("x", 4, ("lm-qv",)).effective_alpha == 8
    assert Recipe("x", 4, ("lm-qv",), alpha=3).effective_alpha == 3


def test_image_path() -> None:
    assert not touches_image_path(["language_model.model.decoder.layers.0.fc1"])
    assert touches_image_path(["language_model.model.decoder.layers.0.fc1", "language_projection"])


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0, -1.0])
def test_alphas_that_are_none(alpha: float) -> None:
    with pytest.raises(UsageError, match="alpha must be a number above 0"):
        Recipe("x", 4, ("lm-qv",), alpha)
