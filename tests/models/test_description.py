"""What a checkpoint's folder says without being loaded, against the loaded model itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from lorax_vlm import MultiModalLoRAExchange
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.description import describe_checkpoint, tokenizer_digest
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.local import describe_local
from tests.adapters_for_tests import write_manifest

MINIS = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")


@pytest.mark.parametrize("name", MINIS)
def test_linear_layers_are_those_of_the_loaded_model(name: str, load_shared: Callable[[str], LoadedModel]) -> None:
    base = load_shared(name)
    loaded = {
        module_name: (module.out_features, module.in_features)
        for module_name, module in base.model.named_modules()
        if isinstance(module, nn.Linear)
    }
    described = dict(describe_checkpoint(base.folder, name).linear_shapes)
    tied = set(loaded) - set(described)  # an output layer that shares the embeddings has no weights of its own
    assert all(site.endswith("lm_head") for site in tied)
    assert described == {site: shape for site, shape in loaded.items() if site not in tied}


@pytest.mark.parametrize("name", MINIS)
def test_the_family_is_that_of_the_loaded_model(name: str, load_shared: Callable[[str], LoadedModel]) -> None:
    described = describe_local(name)
    assert described.family == load_shared(name).family.name
    assert described.tokenizer is not None
    assert described.processor is not None
    assert bool(described.head_shapes) is (name == "vilt-mini")


def test_the_kin_share_their_vision_encoder_and_nothing_else(load_shared: Callable[[str], LoadedModel]) -> None:
    digests = [load_shared(name).fingerprint.components for name in MINIS[:3]]
    assert len({d["vision"] for d in digests}) == 1
    for component in ("qformer", "lm"):
        assert len({d[component] for d in digests}) == 3


def test_a_tokenizer_is_its_vocabulary(mini: LoadedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mini.folder, tmp_path / "m"))
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored, indent=4) + "\n")
    assert tokenizer_digest(folder) == mini.description.tokenizer, "how it is written does not matter"
    stored["added_tokens"][0]["content"] += "!"
    path.write_text(json.dumps(stored))
    assert tokenizer_digest(folder) != mini.description.tokenizer


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "gpt2"}'),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", "{}"),
        ("processor_config.json", "3"),
        ("model.safetensors", "nonsense"),
    ],
)
def test_damaged_folders_are_our_error(mini: LoadedModel, tmp_path: Path, file: str, content: str) -> None:
    folder = Path(shutil.copytree(mini.folder, tmp_path / "m"))
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError):
        describe_checkpoint(folder, "m")


def test_what_is_not_on_this_machine_is_not_fetched() -> None:
    with pytest.raises(CheckpointError, match=r"lorax-vlm models fingerprint blip2-opt-2\.7b"):
        describe_local("blip2_opt")


def test_nothing_is_fetched_for_a_plan_a_check_or_the_matrix(
    store: AdapterStore, adapter_folder: Path, mini: LoadedModel
) -> None:
    store.add("mine", adapter_folder, write_manifest(mini, adapter_folder))
    system = MultiModalLoRAExchange("hub", store=store.root)
    for look in (
        lambda: system.plan_transfer("mine", "blip2_opt"),
        lambda: system.check_adapter("mine", "blip2_opt"),
        lambda: system.compatibility_matrix(["mine"], ["blip2_opt"]),
    ):
        with pytest.raises(CheckpointError, match=r"(?s)is not on this machine.*lorax-vlm models fingerprint"):
            look()


def test_a_checkpoint_of_7b_shape_is_described_from_headers_alone(tmp_path: Path) -> None:
    """A sparse file of 13 GB; where its numbers are read, this does not end within the tests' time limit."""
    shapes = {f"language_model.model.layers.{i}.mlp.up_proj.weight": [11008, 4096] for i in range(150)}
    offset, header = 0, {}
    for name, (rows, columns) in shapes.items():
        header[name] = {"dtype": "F16", "shape": [rows, columns], "data_offsets": [offset, offset + 2 * rows * columns]}
        offset += 2 * rows * columns
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    (tmp_path / "config.json").write_text('{"model_type": "instructblip", "text_config": {"model_type": "llama"}}')
    described = describe_checkpoint(tmp_path, "large")
    assert len(described.linear_shapes) == 150
    assert described.fingerprint is None
