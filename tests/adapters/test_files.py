"""Damaged or foreign adapter directories are refused with what is wrong and where."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.peft_config import CONFIG_FILE
from lorax_vlm.errors import DamagedAdapter, UnsupportedAdapter
from tests.adapters_for_tests import edit_config, edit_weights

SITE = "language_model.model.decoder.layers.0.self_attn.q_proj"
A, B = (f"base_model.model.{SITE}.lora_{factor}.weight" for factor in "AB")


def test_a_sound_directory(adapter_folder: Path) -> None:
    files = read_adapter_files(adapter_folder, "good")
    assert len(files.sites) == 12
    assert files.ranks == [8]
    assert [factor.shape for factor in files.factors[SITE]] == [(8, 160), (160, 8)]
    assert not files.changes_nothing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(adapter_folder: Path, dtype: torch.dtype) -> None:
    weights = {key: value.to(dtype) for key, value in load_file(adapter_folder / WEIGHTS_FILE).items()}
    save_file(weights, adapter_folder / WEIGHTS_FILE)
    assert not read_adapter_files(adapter_folder, "good").changes_nothing


def overwrite(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def truncate_header(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:40])


def lie_about_the_header(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


def pickle_instead(folder: Path) -> None:
    (folder / WEIGHTS_FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weights": 1}))


def pickle_under_the_right_name(folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(pickle.dumps({"weights": 1}))


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    weights[B][0, 0] = float("nan")
    weights[A][0, 0] = float("inf")
    save_file(weights, folder / WEIGHTS_FILE)


def not_a_number_in_bfloat16(folder: Path) -> None:
    weights = {key: value.bfloat16() for key, value in load_file(folder / WEIGHTS_FILE).items()}
    weights[B][0, 0] = float("nan")
    save_file(weights, folder / WEIGHTS_FILE)


DAMAGE = [
    (truncate, "truncated or not safetensors"),
    (truncate_header, "truncated or not safetensors"),
    (lie_about_the_header, "truncated or not safetensors"),
    (overwrite(WEIGHTS_FILE, b""), "truncated or not safetensors"),
    (lambda f: (f / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE} does not exist"),
    (lambda f: (f / CONFIG_FILE).unlink(), f"{CONFIG_FILE} does not exist"),
    (overwrite(CONFIG_FILE, b"{"), "not JSON"),
    (overwrite(CONFIG_FILE, b"\xff"), "not UTF-8"),
    (overwrite(CONFIG_FILE, b"[]"), "expected an object"),
    (overwrite(CONFIG_FILE, b" " * 2_000_000), "the limit is"),
    (pickle_instead, "is a pickle"),
    (pickle_under_the_right_name, "truncated or not safetensors"),
    (not_a_number, f"{A}: 1 of 1280 values are NaN or infinite"),
    (not_a_number_in_bfloat16, "NaN"),
    (lambda f: edit_weights(f, {A: torch.ones(4, 160)}), "do not share a rank"),
    (lambda f: edit_weights(f, {A: torch.ones(4, 160), B: torch.ones(160, 4)}), "rank 4, the configuration says 8"),
    (lambda f: edit_weights(f, {A: torch.ones(8)}), "expected a matrix"),
    (lambda f: edit_weights(f, {A: torch.ones(8, 0)}), "expected a matrix"),
    (lambda f: edit_weights(f, {A: torch.ones(8, 160, dtype=torch.int8)}), "floating-point"),
    (lambda f: edit_weights(f, {B: None}), "lora_B is missing"),
    (lambda f: edit_weights(f, {"surplus": torch.ones(1)}), "unexpected tensor 'surplus'"),
    (lambda f: edit_config(f, r=-8), "r is -8"),
    (lambda f: edit_config(f, r=10**9), "r is 1000000000"),
    (lambda f: edit_config(f, r="8"), "r is '8'"),
    (lambda f: edit_config(f, lora_alpha=None), "lora_alpha is None"),
    (lambda f: edit_config(f, lora_alpha=float("nan")), "NaN is no number"),
    (lambda f: edit_config(f, target_modules=[]), "target_modules"),
    (lambda f: edit_config(f, target_modules="(unclosed"), "target_modules"),
    (lambda f: edit_config(f, target_modules=[7]), "target_modules"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[reason for _, reason in DAMAGE])
def test_damage_is_named_with_its_place(adapter_folder: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(adapter_folder)
    with pytest.raises(DamagedAdapter) as caught:
        read_adapter_files(adapter_folder, "hurt")
    assert reason in str(caught.value)
    assert str(adapter_folder) in str(caught.value)
    assert "'hurt'" in str(caught.value)


def test_all_damage_is_listed_at_once(adapter_folder: Path) -> None:
    not_a_number(adapter_folder)
    edit_weights(adapter_folder, {"surplus": torch.ones(1)})
    with pytest.raises(DamagedAdapter) as caught:
        read_adapter_files(adapter_folder, "hurt")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "option",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["weight"]},
        {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [1, 2]},
        {"init_lora_weights": "pissa"},
        {"peft_type": "LOHA"},
        {"an_option_of_the_future": 3},
    ],
    ids=str,
)
def test_what_is_not_plain_lora_is_refused_by_name(adapter_folder: Path, option: dict[str, object]) -> None:
    edit_config(adapter_folder, **option)
    with pytest.raises(UnsupportedAdapter, match=next(iter(option))):
        read_adapter_files(adapter_folder, "fancy")


def test_rank_patterns_are_understood(adapter_folder: Path) -> None:
    edit_weights(adapter_folder, {A: torch.ones(4, 160), B: torch.ones(160, 4)})
    edit_config(adapter_folder, rank_pattern={"layers.0.self_attn.q_proj": 4})
    assert read_adapter_files(adapter_folder, "mixed").ranks == [4, 8]


def test_zero_factors_are_noticed(adapter_folder: Path) -> None:
    weights = load_file(adapter_folder / WEIGHTS_FILE)
    edit_weights(adapter_folder, {key: torch.zeros_like(value) for key, value in weights.items() if "lora_B" in key})
    assert read_adapter_files(adapter_folder, "zero").changes_nothing
    edit_weights(adapter_folder, {B: torch.ones(160, 8)})
    assert not read_adapter_files(adapter_folder, "one").changes_nothing


def test_unknown_option_that_is_off_is_harmless(adapter_folder: Path) -> None:
    config = json.loads((adapter_folder / CONFIG_FILE).read_text())
    assert config["peft_type"] == "LORA"
    edit_config(adapter_folder, an_option_of_the_future=None, another=False)
    read_adapter_files(adapter_folder, "good")
