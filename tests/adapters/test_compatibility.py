"""An adapter and a base: exact, unverified, or refused with every reason."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from lorax_vlm.adapters.compatibility import CLOSE_DISTANCE, Level, check_compatibility
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import read_manifest
from lorax_vlm.adapters.peft_config import read_settings
from lorax_vlm.exchange.plan import plan_transfer
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.fingerprint import Fingerprint
from lorax_vlm.models.loading import LoadedModel, load_model
from tests.adapters_for_tests import edit_config, edit_weights, write_manifest, write_random_adapter

FAMILIES = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")
SITE = "language_model.model.decoder.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{SITE}.lora_{factor}.weight" for factor in "AB")


@pytest.fixture
def base(mini: LoadedModel) -> BaseDescription:
    return dataclasses.replace(mini.description, fingerprint=mini.fingerprint)


def check(folder: Path, base: BaseDescription):
    return check_compatibility(read_adapter_files(folder, "a"), read_manifest(folder, "a"), base)


def with_changed(base: BaseDescription, *tensors: str, distance: float = 0.1) -> BaseDescription:
    """The base with other values in some tensors, ``distance`` of their norm away from those they had."""
    assert base.fingerprint is not None
    changed = dict(base.fingerprint.tensors)
    for bucket, name in enumerate(tensors):  # one each, so that the changes neither add up nor cancel
        record = changed[name]
        away = np.zeros_like(record.sketch)
        away[bucket] = distance * record.norm
        changed[name] = dataclasses.replace(record, digest="0" * 32, sketch=record.sketch + away)
    return dataclasses.replace(base, fingerprint=Fingerprint(changed))


def test_same_base_is_exact(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    assert check(adapter_folder, base).verdict == "exact"


def test_without_a_manifest_it_is_unverified_at_best(adapter_folder: Path, base: BaseDescription) -> None:
    report = check(adapter_folder, base)
    assert report.verdict == "unverified"
    assert "no manifest" in report.reasons[0]


def test_same_shapes_other_weights_are_refused(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    report = check(adapter_folder, with_changed(base, "qformer.layernorm.bias"))
    assert report.verdict == "refused"
    assert report.reasons == ("qformer: other weights than those of blip2-opt-mini it was trained on",)


def test_other_architecture_is_named_first(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    report = check(
        adapter_folder,
        dataclasses.replace(base, configuration={**base.configuration, "text_config.activation_function": "gelu"}),
    )
    assert report.verdict == "refused"
    where = "base: trained on blip2-opt-mini, this is blip2-opt-mini"
    assert report.reasons[0] == f"{where}; text_config.activation_function: relu there, gelu here"


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


@pytest.mark.parametrize(
    "here", [{"dtype": "bfloat16"}, {"quantization": "4bit"}, {"dtype": None}, {"quantization": None}]
)
def test_another_precision_or_an_unknown_one_is_not_exact(
    adapter_folder: Path, mini: LoadedModel, base: BaseDescription, here: dict[str, str | None]
) -> None:
    """A base that is not loaded has no precision yet: that is unknown, not the one it was trained in."""
    write_manifest(mini, adapter_folder)
    report = check(adapter_folder, dataclasses.replace(base, **here))
    assert report.verdict == "unverified"
    assert report.reasons[0].startswith("trained on a base in float32; here it is ")
    assert report.level == Level.IDENTICAL
    manifest = read_manifest(adapter_folder, "a")
    plan = plan_transfer(read_adapter_files(adapter_folder, "a"), manifest, dataclasses.replace(base, **here))
    assert {part.strategy for part in plan.parts} == {"load"}, "it is the same base all the same"


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
    config, settings = LoraConfig(**selector), read_settings(selector)
    for name in base.linear_shapes:
        assert settings.selects(name) == bool(check_target_module_exists(config, name)), name


# --- levels -----------------------------------------------------------------------------------------------------------


def test_the_same_base_is_level_0(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    assert check(adapter_folder, base).level == Level.IDENTICAL


def test_other_weights_elsewhere_are_level_1(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    write_manifest(mini, adapter_folder)
    report = check(adapter_folder, with_changed(base, "qformer.layernorm.bias"))
    assert [(part.component, part.level, part.distance) for part in report.components] == [
        ("lm", Level.SAME_COMPONENT, 0.0)
    ]


@pytest.mark.parametrize(("distance", "expected"), [(0.05, Level.CLOSE), (0.9, Level.SAME_INTERFACE)])
def test_the_distance_of_the_adapted_weights_decides_between_2_and_3(
    adapter_folder: Path, mini: LoadedModel, base: BaseDescription, distance: float, expected: Level
) -> None:
    write_manifest(mini, adapter_folder)
    sites = read_adapter_files(adapter_folder, "a").sites
    report = check(adapter_folder, with_changed(base, *(f"{site}.weight" for site in sites), distance=distance))
    (part,) = report.components
    assert part.level == expected
    assert part.distance == pytest.approx(distance, rel=1e-6)
    assert (part.distance <= CLOSE_DISTANCE) is (expected is Level.CLOSE)


def test_places_and_shapes_that_do_not_exist_are_level_3(
    adapter_folder: Path, mini: LoadedModel, base: BaseDescription
) -> None:
    write_manifest(mini, adapter_folder)
    for shapes in (
        {name.replace("q_proj", "q"): shape for name, shape in base.linear_shapes.items()},
        {name: (320, 320) for name in base.linear_shapes},
    ):
        report = check(adapter_folder, dataclasses.replace(base, linear_shapes=shapes))
        assert (report.verdict, report.level) == ("refused", Level.SAME_INTERFACE)


def test_unknown_is_never_a_level(adapter_folder: Path, mini: LoadedModel, base: BaseDescription) -> None:
    assert check(adapter_folder, base).level is None, "without a manifest"
    write_manifest(mini, adapter_folder)
    unread = check(adapter_folder, dataclasses.replace(base, fingerprint=None))
    assert (unread.verdict, unread.level) == ("unverified", None)
    assert "lorax-vlm models fingerprint blip2-opt-mini" in unread.reasons[0]


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
def test_another_preparation_is_refused_and_an_unknown_one_is_not_exact(
    adapter_folder: Path, mini: LoadedModel, base: BaseDescription, file: str
) -> None:
    write_manifest(mini, adapter_folder)
    other = check(adapter_folder, dataclasses.replace(base, preparation={**base.preparation, file: "0" * 32}))
    assert other.verdict == "refused"
    assert file in other.reasons[0]
    rest = {name: digest for name, digest in base.preparation.items() if name != file}
    unknown = check(adapter_folder, dataclasses.replace(base, preparation=rest))
    assert unknown.verdict == "unverified"
    assert file in unknown.reasons[0]
    assert unknown.level == Level.SAME_COMPONENT


@pytest.mark.parametrize("source", FAMILIES)
@pytest.mark.parametrize("target", FAMILIES)
def test_every_ordered_pair_of_the_miniatures(source: str, target: str, tmp_path: Path) -> None:
    """An adapter of one family on another's base: PEFT loads several of these as silent no-ops."""
    here, there = load_model(source), load_model(target)
    folder = write_random_adapter(here, tmp_path / "a")
    write_manifest(here, folder)
    report = check(folder, dataclasses.replace(there.description, fingerprint=there.fingerprint))
    if source == target:
        assert (report.verdict, report.level) == ("exact", Level.IDENTICAL)
        return
    assert report.verdict == "refused"
    assert len(report.reasons) > len(read_adapter_files(folder, "a").sites), "every site is named"
    assert report.level == (Level.OTHER_INTERFACE if "vilt-mini" in (source, target) else Level.SAME_INTERFACE)


def test_a_vision_adapter_is_level_1_on_the_kin(tmp_path: Path) -> None:
    opt = load_model("blip2-opt-mini")
    folder = write_random_adapter(opt, tmp_path / "a", "portable")
    write_manifest(opt, folder)
    for kin in ("blip2-flan-mini", "instructblip-mini"):
        base = load_model(kin)
        report = check(folder, dataclasses.replace(base.description, fingerprint=base.fingerprint))
        assert report.level == Level.SAME_COMPONENT
        assert report.verdict == "refused", "it can be copied, but it was not trained there"
