"""What is trained here loads into plain PEFT and gives the same logits, and the other way round."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Blip2ForConditionalGeneration

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.training.config import TrainConfig
from tests.adapters_for_tests import EVERYWHERE, edit_config, write_random_adapter

TOLERANCE = 1e-5  # float32, the same operations in the same order


@pytest.fixture
def batch(mini: LoadedModel, scenes: list[Scene]):
    pixels = mini.family.prepare([scene.image for scene in scenes])
    batch = mini.family.training_batch(pixels, [""] * len(scenes), [scene.caption("detailed") for scene in scenes])
    batch.pop("labels")
    return batch


def plain_base(mini: LoadedModel) -> Blip2ForConditionalGeneration:
    return Blip2ForConditionalGeneration.from_pretrained(mini.entry.source).eval()


@torch.no_grad()
def our_logits(mini: LoadedModel, folder: Path, batch) -> torch.Tensor:
    adapters = AttachedAdapters(mini)
    adapters.attach("it", folder)
    try:
        with adapters.using("it") as model:
            return model(**batch).logits
    finally:
        adapters.detach_all()


@torch.no_grad()
def assert_same_effect(mini: LoadedModel, folder: Path, batch) -> None:
    ours = our_logits(mini, folder, batch)
    theirs = PeftModel.from_pretrained(plain_base(mini), folder).eval()(**batch).logits
    base = mini.model(**batch).logits
    assert (ours - base).abs().max() > 0.01, "the adapter must do something"
    assert torch.allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_trained_here_used_by_plain_peft(system: BLIP2CaptioningSystem, mini: LoadedModel, batch, tmp_path) -> None:
    config = TrainConfig(max_steps=6, batch_size=8, eval_every=6, learning_rate=5e-3)
    system.create_captioning_adapter("mine", "detailed", config=config, progress=False)
    assert_same_effect(mini, system.save_adapter("mine", tmp_path / "out"), batch)


@pytest.mark.parametrize("recipe", ["light", "medium", "heavy", EVERYWHERE], ids=str)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_recipe_gives_pefts_logits(mini: LoadedModel, batch, tmp_path: Path, recipe: str | Recipe) -> None:
    assert_same_effect(mini, write_random_adapter(mini, tmp_path / "a", recipe), batch)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r"language_model.*\.fc[12]", "use_rslora": True, "lora_alpha": 3},
        {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 9}},
        {"target_modules": ["qkv", "query"], "layers_to_transform": [0]},
    ],
    ids=str,
)
def test_trained_by_plain_peft_used_here(mini: LoadedModel, batch, tmp_path: Path, options: dict) -> None:
    torch.manual_seed(0)
    model = get_peft_model(plain_base(mini), LoraConfig(r=4, **options))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == mini.family.image_token_id, -100)
    for _ in range(4):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    assert_same_effect(mini, tmp_path / "theirs", batch)


def test_a_directory_of_plain_peft_enters_the_store(
    system: BLIP2CaptioningSystem, adapter_folder: Path, caplog
) -> None:
    stored = system.load_adapter(adapter_folder)
    assert stored.name == "random-medium"
    assert stored.manifest.base is None
    assert "nothing says which weights" in caplog.text
    assert [entry.name for entry in system.list_adapters()] == ["random-medium"]


def test_the_saved_configuration_names_no_path_of_this_machine(adapter_folder: Path, mini: LoadedModel) -> None:
    text = (adapter_folder / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "blip2-opt-mini"' in text
    assert str(Path.home()) not in text
    assert mini.entry.source not in text


def test_scaling_of_peft_is_used_not_guessed(mini: LoadedModel, batch, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "a")
    once = our_logits(mini, folder, batch)
    edit_config(folder, lora_alpha=32)
    assert (our_logits(mini, folder, batch) - once).abs().max() > 0.01
