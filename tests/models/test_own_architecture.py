"""An architecture that another package brings: a row and a file, and nothing of this package is touched."""

import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig

from lorax_vlm.data.world.skills import skill_examples, skill_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.models import spec
from lorax_vlm.models.components import component_of
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.skills import answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem

ROW = """
from lorax_vlm.models.spec import ARCHITECTURES, Architecture, register

LAYER = r"language_model\\.model\\.layers\\.\\d+\\."
register(
    Architecture(
        name="blip2-llama",
        model_type="blip-2",
        text_type="llama",
        implementation="acme_vlm.family:Blip2LlamaFamily",
        components=ARCHITECTURES["blip2-opt"].components,
        site_groups={
            "lm-qv": LAYER + r"self_attn\\.(q_proj|v_proj)",
            "lm-attention": LAYER + r"self_attn\\.(q_proj|k_proj|v_proj|o_proj)",
            "lm-mlp": LAYER + r"mlp\\.(gate_proj|up_proj|down_proj)",
        },
        width_readers=("q_proj", "k_proj", "v_proj"),
        quantized_share=0.8,
        question_template="Q: {question} A:",
    )
)
"""
FILE = '''
"""BLIP-2 over a LLaMA, whose end is the tokenizer's own."""

from lorax_vlm.models.families.blip2 import Blip2DecoderFamily


class Blip2LlamaFamily(Blip2DecoderFamily):
    name = "blip2-llama"

    def _special_ids(self, text_config):
        return self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
'''
FEW = TrainConfig(max_steps=30, batch_size=16, learning_rate=5e-3, eval_every=15, patience=None)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mini: LoadedModel) -> Iterator[Path]:
    """A tiny random checkpoint of an architecture that only the package ``acme_vlm`` knows."""
    package = tmp_path / "site" / "acme_vlm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(ROW)
    (package / "family.py").write_text(FILE)
    monkeypatch.syspath_prepend(str(package.parent))
    importlib.import_module("acme_vlm")

    folder = tmp_path / "blip2-llama-tiny"
    own = mini.model.config
    tokenizer = mini.family.tokenizer
    text = LlamaConfig(
        vocab_size=own.text_config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,  # so that what a random model puts out can be moved
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=own.vision_config.to_dict(),
        qformer_config=own.qformer_config.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=own.num_query_tokens,
        image_token_index=own.image_token_index,
    )
    model = Blip2ForConditionalGeneration(config)
    # Its image path sees, so that there is something to learn.
    for part in ("vision_model", "qformer"):
        getattr(model, part).load_state_dict(getattr(mini.model, part).state_dict())
    model.query_tokens.data.copy_(mini.model.query_tokens)
    model.save_pretrained(folder)
    mini.family.processor.save_pretrained(folder)
    yield folder
    spec._REGISTERED.pop("blip2-llama")
    for name in ("acme_vlm.family", "acme_vlm"):
        sys.modules.pop(name, None)


def test_it_is_trained_asked_measured_and_exchanged(checkpoint: Path, tmp_path: Path) -> None:
    store, splits = tmp_path / "store", skill_splits(answer("general"))
    splits = dataclasses.replace(splits, train=splits.train[:400], validation=splits.validation[:40])
    system = VQASystem({"blip2_opt": str(checkpoint), "blip2_flan": "blip2-flan-mini"}, store=store)
    stored = system.train_adapter("blip2_opt", "colours", "general", data=splits, config=FEW, progress=False)
    assert stored.manifest.base is not None
    assert (stored.manifest.base.family, stored.manifest.prompt) == ("blip2-llama", "Q: {question} A:")
    assert set(stored.manifest.sites) == {"lm"}
    learnt = stored.manifest.training
    assert learnt["best_validation_loss"] < learnt["first_validation_loss"] - 0.5

    asked = splits.validation[0]
    one = system.answer_question(asked.open_image(), asked.question, "blip2_opt", "colours")
    assert (one.base, one.adapter) == ("blip2-llama-tiny", "colours")

    examples = skill_examples(answer("general"), "test", 40)
    base, adapted = (system.evaluate("blip2_opt", name, examples=examples) for name in (None, "colours"))
    assert (base.base, adapted.adapter, adapted.count) == ("blip2-llama-tiny", "colours", 40)
    said = [[record.answer for record in report.records] for report in (base, adapted)]
    assert said[0] != said[1]

    exchange = MultiModalLoRAExchange({"blip2_opt": str(checkpoint), "blip2_flan": "blip2-flan-mini"}, store=store)
    matrix = exchange.compatibility_matrix([stored.name], ["blip2_opt", "blip2_flan"])
    words = [matrix.word(stored.name, base) for base in ("blip2-llama-tiny", "blip2-flan-mini")]
    assert words == ["L0", "L3"]
    moved = exchange.cross_model_adapter_transfer(
        stored.name, "blip2_flan", unlabelled=splits.validation, development=examples, config=FEW, progress=False
    )
    assert moved.plan.label.startswith("distilled")


def test_a_row_says_no_other_rows_word(checkpoint: Path) -> None:
    row = spec.ARCHITECTURES["blip2-llama"]
    spec.register(row)  # again
    assert component_of("language_model.model.layers.0") == "lm"
    for changes, words in (
        ({"implementation": "elsewhere:Family"}, "'blip2-llama' (blip-2 with llama) already"),
        ({"name": "other"}, "'blip2-llama' (blip-2 with llama) already"),
        ({"name": "other", "text_type": "gpt2", "components": {"qformer": "lm"}}, "'lm' in other, 'qformer' in"),
    ):
        with pytest.raises(UsageError) as refused:
            spec.register(dataclasses.replace(row, **changes))
        assert words in str(refused.value)
