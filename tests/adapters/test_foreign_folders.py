"""Folders as other people have them: taken where nothing is lost by it, else refused with the way out."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from safetensors.torch import load_file, save_file

from lorax_vlm.adapters.compatibility import check_compatibility
from lorax_vlm.adapters.files import read_adapter, read_adapter_files
from lorax_vlm.adapters.inspection import inspect_adapter
from lorax_vlm.adapters.manifest import read_manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE, METHODS_NOT_FOLDED
from lorax_vlm.adapters.peft_layers import add_peft_layers
from lorax_vlm.adapters.prefixed import with_prefix
from lorax_vlm.errors import AdapterError, UnsupportedAdapter, UsageError
from lorax_vlm.models.loading import LoadedModel
from tests.adapters_for_tests import edit_config, edit_weights

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1049\n"
PART = "language_model."


def move_into(*parts: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        inner = folder.joinpath(*parts)
        inner.mkdir(parents=True)
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            (folder / file).rename(inner / file)

    return move


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()


def split(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model-00001-of-00002.safetensors")


def with_default(folder: Path, name: str = "default") -> None:
    weights = {
        key.replace(".weight", f".{name}.weight"): value for key, value in load_file(folder / WEIGHTS_FILE).items()
    }
    save_file(weights, folder / WEIGHTS_FILE)


def eight_bits(folder: Path) -> None:
    edit_weights(folder, {key: v.to(torch.float8_e4m3fn) for key, v in load_file(folder / WEIGHTS_FILE).items()})


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer of both": (lambda f: [(f / n).write_bytes(POINTER) for n in (CONFIG_FILE, WEIGHTS_FILE)], "git lfs pull"),
    "pointer of weights": (lambda f: (f / WEIGHTS_FILE).write_bytes(POINTER), "git lfs pull"),
    "a folder deeper": (move_into("mystyle"), "there is one in mystyle/: name that folder"),
    "split": (split, "split over 1 files"),
    "not there": (shutil.rmtree, "the folder does not exist"),
    "a pickle": (pickled, "convert it once where PEFT is installed"),
    "eight bits": (eight_bits, "in 16 or 32 bits"),
    "default in its keys": (with_default, "the name of an adapter ('default')"),
    "another name in its keys": (
        lambda folder: with_default(folder, "my_style"),
        "the name of an adapter ('my_style')",
    ),
    "half a configuration": (lambda f: (f / CONFIG_FILE).write_text('{"peft_type": "LORA"'), "not JSON"),
    "a configuration twice": (lambda f: (f / CONFIG_FILE).write_text('{"r": 1}{"r": 2}'), "not JSON"),
    "another method": (lambda f: edit_config(f, peft_type="LOHA"), "LOHA"),
    "DoRA": (lambda f: edit_config(f, use_dora=True), "use_dora"),
    "PiSSA": (lambda f: edit_config(f, init_lora_weights="pissa"), "lorax-vlm exchange fold"),
    "PiSSA by chance": (lambda f: edit_config(f, init_lora_weights="pissa_niter_4"), "path_initial_model"),
    "OLoRA": (lambda f: edit_config(f, init_lora_weights="olora"), "lorax-vlm exchange fold"),
    "CorDA": (lambda f: edit_config(f, init_lora_weights="corda"), "path_initial_model_for_weight_conversion"),
    "an unknown number": (lambda f: edit_config(f, new_group_size=16), "new_group_size = 16"),
    "an infinite scale": (lambda f: edit_config(f, lora_alpha=1e308), "lora_alpha"),
    "an alpha of 400 digits": (lambda f: edit_config(f, lora_alpha=10**400), "lora_alpha"),
    "a deep one": (lambda f: (f / CONFIG_FILE).write_text("[" * 100_000), "too deep"),
    "layers that are none": (lambda f: edit_config(f, layers_to_transform=1.5), "layers_to_transform"),
    "a pattern list": (lambda f: edit_config(f, alpha_pattern=[1]), "alpha_pattern"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_way_out_is_named(adapter_folder: Path, kind: str) -> None:
    change, said = REFUSED[kind]
    change(adapter_folder)
    with pytest.raises(AdapterError) as caught:
        read_adapter_files(adapter_folder, "it")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 8000
    try:
        inspect_adapter(adapter_folder)
    except AdapterError as error:
        assert str(adapter_folder) in str(error)  # noqa: PT017


@pytest.mark.parametrize("peft_type", sorted(kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING))
def test_folding_is_advised_of_what_changes_weights(adapter_folder: Path, peft_type: str) -> None:
    edit_config(adapter_folder, peft_type=peft_type, use_dora=True)
    with pytest.raises(UnsupportedAdapter) as caught:
        read_adapter_files(adapter_folder, "it")
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[peft_type]
    assert "exchange fold" not in str(caught.value) or issubclass(tuner, BaseTuner)
    assert peft_type == "LORA" or ("exchange fold" in str(caught.value)) is (peft_type not in METHODS_NOT_FOLDED)


@pytest.mark.parametrize(
    "option",
    [
        {"_from_model_config": True},
        {"runtime_config": {"ephemeral_gpu_offload": False}},
        {"new_switch": None},
        {"new_switch": False},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "gaussian"},
        {"lora_bias": False, "layer_replication": None, "megatron_core": "megatron.core", "qalora_group_size": 16},
    ],
    ids=str,
)
def test_what_says_nothing_about_the_sum_is_taken(adapter_folder: Path, option: dict[str, object]) -> None:
    edit_config(adapter_folder, **option)
    assert len(read_adapter_files(adapter_folder, "it").sites) == 12


def test_all_linear_is_what_peft_makes_of_it(mini: LoadedModel, tmp_path: Path) -> None:
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
    model = add_peft_layers(copy.deepcopy(mini.model), config, "default")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.01)
    model.save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", target_modules="all-linear")
    files = read_adapter_files(tmp_path / "a", "a")
    assert {name for name in mini.description.linear_shapes if files.settings.selects(name)} == set(files.sites)
    assert check_compatibility(files, read_manifest(tmp_path / "a", "a"), mini.description).verdict == "unverified"


def of_the_part(folder: Path) -> None:
    """As plain PEFT saves what was put on ``model.language_model`` alone."""
    begin = f"base_model.model.{PART}"
    weights = {
        key.replace(begin, "base_model.model."): value for key, value in load_file(folder / WEIGHTS_FILE).items()
    }
    save_file(weights, folder / WEIGHTS_FILE)
    edit_config(folder, target_modules=["q_proj", "v_proj", "k_proj", "out_proj"])


def test_an_adapter_of_a_part_is_loaded_with_its_prefix(mini: LoadedModel, adapter_folder: Path) -> None:
    whole = read_adapter(adapter_folder, "whole")
    of_the_part(adapter_folder)
    files = read_adapter_files(adapter_folder, "part")
    report = check_compatibility(files, read_manifest(adapter_folder, "part"), mini.description)
    assert report.verdict == "refused"
    assert "--prefix language_model." in report.reasons[0]
    with with_prefix(adapter_folder, "part", "language_model") as renamed:
        named = read_adapter(renamed, "part")
        assert named.files.sites == whole.files.sites
        for site in whole.files.sites:
            assert named.files.scaling(site) == whole.files.scaling(site)
            assert all((a == b).all() for a, b in zip(named.pair(site), whole.pair(site), strict=True))
        good = check_compatibility(named.files, read_manifest(renamed, "part"), mini.description)
        assert good.verdict == "unverified"
    for odd in ("", "..", "a b", "a/b", 7, "x" * 10 + "\0"):
        with pytest.raises(UsageError, match="prefix is"), with_prefix(adapter_folder, "part", odd):  # type: ignore[arg-type]
            pass


def test_a_pattern_that_is_not_run_is_no_damage(adapter_folder: Path) -> None:
    edit_config(adapter_folder, target_modules="(?i).*Q_PROJ")
    with pytest.raises(UnsupportedAdapter, match="target_modules: the pattern"):
        read_adapter_files(adapter_folder, "it")


def test_a_configuration_in_another_encoding_is_read(adapter_folder: Path) -> None:
    config = json.loads((adapter_folder / CONFIG_FILE).read_text())
    for encoding in ("utf-8-sig", "utf-16"):
        (adapter_folder / CONFIG_FILE).write_bytes(json.dumps(config).encode(encoding))
        assert len(read_adapter_files(adapter_folder, "it").sites) == 12
