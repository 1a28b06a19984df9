"""An adapter and a base: exact, unverified, or refused with every reason."""

import dataclasses
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from lorax_vlm.adapters.compatibility import BaseDescription, check_compatibility, targets_module
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import read_manifest
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import describe_base
from tests.adapters_for_tests import edit_config, edit_weights, write_manifest

SITE = "language_model.model.decoder.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{SITE}.lora_{factor}.weight" for factor in "AB")


@pytest.fixture
def base(mini: LoadedModel) -> BaseDescription:
    return describe_base(mini)


def check(folder: Path, base: BaseDescription):
    return check_compatibility(read_adapter_files(folder, "a"), read_manifest(folder, "a"), base)


def test_same_base_is_exact(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    assert check(adapter_folder, base).verdict == "exact"


def test_without_a_manifest_it_is_unverified_at_best(adapter_folder: Path, base: BaseDescription) -> None:
    report = check(adapter_folder, base)
    assert report.verdict == "unverified"
    assert "no manifest" in report.reasons[0]


def test_same_shapes_other_weights_are_refused(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    other = dataclasses.replace(base, fingerprint={**base.fingerprint, "qformer": "0" * 32})
    report = check(adapter_folder, other)
    assert report.verdict == "refused"
    assert report.reasons == ("qformer: other weights than those of blip2-opt-mini it was trained on",)


def test_other_architecture_is_named_first(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    report = check(adapter_folder, dataclasses.replace(base, architecture="other"))
    assert report.verdict == "refused"
    assert report.reasons[0].startswith("base: trained on blip2-opt-mini")


def test_foreign_sites(adapter_folder: Path, base: BaseDescription) -> None:
    t5 = {name.replace("self_attn.q_proj", "SelfAttention.q"): shape for name, shape in base.linear_shapes.items()}
    report = check(adapter_folder, dataclasses.replace(base, linear_shapes=t5))
    assert report.verdict == "refused"
    assert sum("no linear layer of this base" in reason for reason in report.reasons) == 3


def test_other_widths_and_transposed_factors(adapter_folder: Path, base: BaseDescription) -> None:
    wider = {name: (2560, 2560) if name == SITE else shape for name, shape in base.linear_shapes.items()}
    assert check(adapter_folder, dataclasses.replace(base, linear_shapes=wider)).reasons == (
        f"{SITE}: adapter 160 -> 160, base 2560 -> 2560",
    )
    oblong = {name: (320, 160) if name == SITE else shape for name, shape in base.linear_shapes.items()}
    edit_weights(adapter_folder, {A: torch.ones(8, 320), B: torch.ones(160, 8)})
    report = check(adapter_folder, dataclasses.replace(base, linear_shapes=oblong))
    assert "look transposed" not in report.reasons[0]
    assert f"{SITE}: adapter 320 -> 160, base 160 -> 320" in report.reasons[0]


def test_missing_and_surplus_sites(adapter_folder: Path, base: BaseDescription) -> None:
    edit_weights(adapter_folder, {A: None, B: None})
    assert check(adapter_folder, base).reasons == (f"{SITE}: named by its target_modules, but not in the adapter",)
    edit_config(adapter_folder, target_modules=["k_proj", "v_proj", "out_proj"])
    report = check(adapter_folder, base)
    assert report.verdict == "refused"
    assert all("not named by its target_modules" in reason for reason in report.reasons)


SELECTORS = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": r".*language_model.*\.(q_proj|fc1)"},
    {"target_modules": ["fc1", "qkv"]},
    {"target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
    {"target_modules": ["q_proj"], "exclude_modules": r".*\.2\..*"},
    {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [0, 2]},
    {"target_modules": ["q_proj", "fc1"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["query", "fc1"], "layers_to_transform": [1], "layers_pattern": ["layer"]},
    {"target_modules": ["language_projection"]},
    {"target_modules": ["language_projection"], "layers_to_transform": [0]},
]


@pytest.mark.parametrize("selector", SELECTORS, ids=str)
def test_selection_equals_peft(selector: dict[str, object], base: BaseDescription) -> None:
    config = LoraConfig(**selector)
    for name in base.linear_shapes:
        assert targets_module(selector, name) == bool(check_target_module_exists(config, name)), name
