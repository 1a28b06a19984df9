"""Loading: the only door to a base model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BlipImageProcessorPil

from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import CheckpointError, OutOfMemoryForecast, UnknownModel
from lorax_vlm.models import loading
from lorax_vlm.models.catalog import get_model_entry, list_models
from lorax_vlm.models.components import component_of
from lorax_vlm.models.description import describe_checkpoint
from lorax_vlm.models.fingerprint import read_fingerprint
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.models.placement import Hardware
from lorax_vlm.types import GenerationSettings


@pytest.fixture
def copy(mini: LoadedModel, tmp_path: Path) -> Path:
    """A local checkpoint that is not in the catalogue."""
    return Path(shutil.copytree(mini.entry.source, tmp_path / "my-blip2"))


def test_the_miniature(mini: LoadedModel) -> None:
    assert mini.entry.parameters == sum(p.numel() for p in mini.model.parameters())
    assert {p.dtype for p in mini.model.parameters()} == {torch.float32}
    assert not mini.model.training
    assert not any(p.requires_grad for p in mini.model.parameters())
    assert {component_of(name) for name, _ in mini.model.named_parameters()} == {
        "vision",
        "qformer",
        "projection",
        "lm",
    }


def test_the_image_processor_is_pinned(mini: LoadedModel) -> None:
    """With torchvision installed transformers would choose another, whose resizing differs."""
    assert type(mini.family.processor.image_processor) is BlipImageProcessorPil


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_precision_is_what_was_asked_for(mini: LoadedModel, scenes: list[Scene], dtype: str) -> None:
    base = load_model("blip2-opt-mini", dtype=dtype)
    assert {p.dtype for p in base.model.parameters()} == {getattr(torch, dtype)}
    features = base.family.encode_images(base.model, base.family.prepare([scenes[0].image]))
    assert base.family.generate(base.model, features, [""], GenerationSettings())[0].text == "a red star"


def test_a_folder_loads_like_the_catalogue_name(mini: LoadedModel, copy: Path) -> None:
    local = load_model(str(copy), dtype="float32")
    assert local.name == "my-blip2"
    assert local.fingerprint.components == mini.fingerprint.components
    assert local.description.configuration == mini.description.configuration


def test_names_keys_and_ids_find_the_same_row() -> None:
    rows = {get_model_entry(name) for name in ("blip2-opt-2.7b", "blip2_opt", "Salesforce/blip2-opt-2.7b")}
    assert len(rows) == 1
    assert get_model_entry("someone/their-blip2").source == "someone/their-blip2"
    assert len({entry.name for entry in list_models()}) == len(list_models())


@pytest.mark.parametrize("name", ["nothing", "./no/such", "a/b/c", ""])
def test_unknown_names_list_the_known(name: str) -> None:
    with pytest.raises(UnknownModel, match="blip2-opt-mini"):
        get_model_entry(name)


def test_without_a_connection_the_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "probe_hardware", lambda: Hardware(10**12))
    with pytest.raises(CheckpointError, match=r"Salesforce/blip2-opt-2\.7b cannot be used.*(?s:.)*blip2-opt-mini"):
        load_model("blip2_opt")


def test_memory_is_checked_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "probe_hardware", lambda: Hardware(4_000_000_000, cpu_bfloat16=True))
    monkeypatch.setattr(loading, "_fetch", lambda entry: pytest.fail("it was fetched"))
    with pytest.raises(OutOfMemoryForecast, match=r"needs about 8\.2 GB on cpu, 4\.0 GB are free"):
        load_model("blip2_opt")


def test_other_architectures_are_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["model_type"] = "gpt_neox"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="text model gpt_neox; supported: blip-2 with opt, blip-2 with t5"):
        load_model(str(copy))


def test_pickled_weights_are_never_read(copy: Path) -> None:
    torch.save({}, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="Only safetensors"):
        load_model(str(copy))


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_the_fingerprint_sees_one_changed_component(mini: LoadedModel, tmp_path: Path) -> None:
    model = load_model("blip2-opt-mini").model
    model.save_pretrained(tmp_path / "same")
    same = read_fingerprint(tmp_path / "same")
    assert same.components == mini.fingerprint.components, "precision on disk does not matter"
    with torch.no_grad():
        model.qformer.layernorm.bias += 0.01
    model.save_pretrained(tmp_path / "other")
    other, known = read_fingerprint(tmp_path / "other").components, mini.fingerprint.components
    assert {component for component in other if other[component] != known[component]} == {"qformer"}
    with pytest.raises(CheckpointError, match="no \\*\\.safetensors"):
        read_fingerprint(tmp_path)


def test_the_configuration_leaves_out_what_decides_nothing(mini: LoadedModel, tmp_path: Path) -> None:
    shutil.copytree(mini.folder, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text()) | {"_name_or_path": "elsewhere", "transformers_version": "6.0.0"}
    path.write_text(json.dumps(config))
    assert describe_checkpoint(tmp_path / "a", "a").configuration == mini.description.configuration
    config["text_config"]["ffn_dim"] = 320
    path.write_text(json.dumps(config))
    changed = describe_checkpoint(tmp_path / "a", "a").configuration
    assert {key for key in changed if changed[key] != mini.description.configuration[key]} == {"text_config.ffn_dim"}


# --- quantisation -------------------------------------------------------------------------------------------------


def test_four_bits_quantise_the_language_model_only(mini: LoadedModel, scenes: list[Scene]) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = load_model("blip2-opt-mini", device="cpu", quantize="4bit")
    quantized = {n for n, m in base.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert {component_of(name) for name in quantized} == {"lm"}
    linear = {n for n, m in base.model.language_model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    assert len(quantized) == len(linear)
    features = base.family.encode_images(base.model, base.family.prepare([s.image for s in scenes]))
    texts = base.family.generate(base.model, features, [""] * len(scenes), GenerationSettings(max_new_tokens=48))
    assert all(text.text.startswith(("a ", "an ")) for text in texts)
