"""Looking into files of anybody: sites, ranks, dead layers, likely bases, and what differs between two."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lorax_vlm.adapters.compare import compare_adapters
from lorax_vlm.adapters.inspection import inspect_adapter
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.reports.pictures import draw_inspection
from lorax_vlm.skills import answer
from tests.adapters_for_tests import edit_config, edit_weights, write_random_adapter


def test_sites_by_component(mini: LoadedModel, tmp_path: Path) -> None:
    recipe = Recipe("mixed", 4, ("lm-qv", "vision", "projection"))
    found = inspect_adapter(write_random_adapter(mini, tmp_path / "a", recipe))
    assert {component: len(sites) for component, sites in found.by_component.items()} == {
        "lm": 6,
        "vision": 6,
        "projection": 1,
    }
    assert sum(found.share(component) for component in found.by_component) == pytest.approx(1)
    site = next(site for site in found.sites if site.role == "qkv")
    assert (site.shape, site.rank, site.layer) == ((480, 160), 4, 0)
    assert found.likely_bases == ("blip2-opt-mini",)
    assert found.claimed_base == "blip2-opt-mini"
    assert found.dead == []
    assert draw_inspection(found, tmp_path / "a.png").stat().st_size > 10_000


def test_norm_and_ranks_are_those_of_the_formed_update(mini: LoadedModel, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "a", "light")
    edit_config(folder, use_rslora=True, lora_alpha=6)
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    for site in inspect_adapter(folder).sites:
        a, b = (tensors[f"base_model.model.{site.site}.lora_{factor}.weight"].double() for factor in "AB")
        values = np.linalg.svd((3.0 * b @ a).numpy(), compute_uv=False)  # alpha / sqrt(rank) = 6 / 2
        assert site.norm == pytest.approx(np.linalg.norm(values))
        shares = values[values > 1e-9] ** 2 / (values**2).sum()
        assert site.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_a_layer_that_does_nothing_is_dead(mini: LoadedModel, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "a", "light")
    site = "language_model.model.decoder.layers.1.self_attn.v_proj"
    edit_weights(folder, {f"base_model.model.{site}.lora_B.weight": torch.zeros(160, 4)})
    assert inspect_adapter(folder).dead == [site]


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"])
def test_the_likely_base_is_found_by_names_and_shapes(
    name: str, load_shared: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    folder = write_random_adapter(load_shared(name), tmp_path / "a")
    edit_config(folder, base_model_name_or_path="somewhere/else")
    assert inspect_adapter(folder).likely_bases == (name,)


def test_real_shapes_are_told_apart(tmp_path: Path) -> None:
    """Names and widths of the hub's BLIP-2 OPT-2.7B: 32 layers of width 2,560."""
    tensors = {}
    for layer in (0, 31):
        site = f"base_model.model.language_model.model.decoder.layers.{layer}.self_attn.q_proj"
        tensors |= {f"{site}.lora_A.weight": torch.randn(2, 2560), f"{site}.lora_B.weight": torch.randn(2560, 2)}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    assert inspect_adapter(tmp_path).likely_bases == ("blip2-opt-2.7b", "blip2-opt-2.7b-coco")


def test_what_is_not_plain_is_said_and_files_without_factors_are_refused(mini: LoadedModel, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "a", "light")
    edit_config(folder, use_dora=True)
    edit_weights(folder, {"base_model.model.lm_head.weight": torch.ones(2, 2)})
    found = inspect_adapter(folder)
    assert found.features == ("use_dora = True",)
    assert found.others == ("base_model.model.lm_head.weight",)
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(DamagedAdapter, match="no LoRA factors"):
        inspect_adapter(folder)
    with pytest.raises(DamagedAdapter):
        inspect_adapter(tmp_path / "nothing")


def test_what_differs_between_two(mini: LoadedModel, store: AdapterStore, tmp_path: Path) -> None:
    plain = Manifest("one", answer("counting"), None, trained=True, training={"config": {"max_steps": 5}})
    store.add("one", write_random_adapter(mini, tmp_path / "a", "light"), plain)
    same = compare_adapters(store, "one", "one")
    assert (same.facts, same.distance, same.farthest) == ([], pytest.approx(0, abs=1e-9), [])
    assert same.cosine == pytest.approx(1)
    other = dataclasses.replace(plain, skill=answer("reasoning"), training={"config": {"max_steps": 9}})
    store.add("one", write_random_adapter(mini, tmp_path / "b", "medium", seed=7), other, replace=True)
    found = compare_adapters(store, "one@1", "one@2")
    assert ("skill.name", "counting", "reasoning") in found.facts
    assert ("training.config.max_steps", "5", "9") in found.facts
    assert (found.shared, len(found.only_first), len(found.only_second)) == (6, 0, 6)
    assert abs(found.cosine) < 0.1
    assert len(found.farthest) == 6


def test_a_pointer_of_git_lfs_is_called_one(adapter_folder: Path) -> None:
    (adapter_folder / WEIGHTS_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DamagedAdapter, match="git lfs pull"):
        inspect_adapter(adapter_folder)
