"""4 and 8 bits on a CPU: what is quantised, that it answers, and that it trains."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.catalog import CATALOG
from lorax_vlm.models.families.registry import family_class
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.models.spec import ARCHITECTURES, Architecture
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from tests.adapters_for_tests import write_random_adapter

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")

FAMILY_NAMES = ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"]
FEW = TrainConfig(max_steps=3, batch_size=4, eval_every=3, learning_rate=1e-2, patience=None)
COLOR = "What color is the background?"


@pytest.fixture(scope="module", params=FAMILY_NAMES)
def four_bit(request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(request.param, quantize="4bit")


@torch.no_grad()
def answer(base: LoadedModel, model: Any, scenes: list[Scene]) -> list[str]:
    prompts = [base.entry.question_prompt(COLOR)] * len(scenes)
    pixels = base.family.prepare([scene.image for scene in scenes])
    features = base.family.encode_images(model, pixels, prompts)
    return [g.text for g in base.family.generate(model, features, prompts, base.entry.answer_settings)]


def test_only_the_language_models_linear_layers_are_quantised(four_bit: LoadedModel) -> None:
    quantised = [n for n, m in four_bit.model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    plain = [n for n, m in four_bit.model.named_modules() if type(m) is nn.Linear]
    assert quantised
    assert all(name.startswith(("language_model.", "vilt.encoder.")) for name in quantised)
    kept = ("vision_model", "qformer", "language_projection", "language_model.lm_head", "classifier", "vilt.pooler")
    assert all(name.startswith(kept) or name.endswith(".wo") for name in plain), plain
    if four_bit.family.name == "blip2-t5":
        assert any(name.endswith(".wo") for name in plain)
    for name in quantised:
        weight = four_bit.model.get_submodule(name).weight
        assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)


def test_it_answers_nearly_as_before(four_bit: LoadedModel, scenes: list[Scene]) -> None:
    given = answer(four_bit, four_bit.model, scenes)
    assert sum(text == scene.background for text, scene in zip(given, scenes, strict=True)) >= 10


def test_it_trains(four_bit: LoadedModel, scenes: list[Scene], tmp_path: Path) -> None:
    examples = [answered(s.image, COLOR, ["blue"], f"scene {s.seed}") for s in scenes]
    splits = DataSplits(examples[:8], examples[8:], "x").with_prompt(four_bit.entry.question_template)
    recipe = Recipe("small", rank=4, groups=("lm-attention",))
    result = train_adapter(four_bit, AdapterPlan("adapter", recipe, splits, FEW), tmp_path / "run", progress=False)
    assert result.best_validation_loss < result.first_validation_loss
    attached = AttachedAdapters(four_bit)
    attached.attach("blue", result.folder)
    before = answer(four_bit, four_bit.model, scenes)
    with attached.using("blue") as model:
        assert answer(four_bit, model, scenes) != before
    assert answer(four_bit, four_bit.model, scenes) == before
    attached.detach_all()


@torch.no_grad()
def test_a_mixed_batch_on_four_bits_is_each_row_alone(
    four_bit: LoadedModel, scenes: list[Scene], tmp_path: Path
) -> None:
    attached = AttachedAdapters(four_bit)
    for seed, name in enumerate(("one", "two"), start=1):
        attached.attach(name, write_random_adapter(four_bit, tmp_path / name, "heavy", seed))
    prompts = [four_bit.entry.question_prompt(COLOR)] * 4
    pixels = four_bit.family.prepare([scene.image for scene in scenes[:4]])
    batch = four_bit.family.training_batch(pixels, prompts, ["yes"] * 4)
    batch.pop("labels")
    rows = ["one", None, "two", "one"]
    found = {name: _logits(attached, [name] * 4, batch) for name in (None, "one", "two")}
    mixed = _logits(attached, rows, batch)
    attached.detach_all()
    for index, name in enumerate(rows):
        assert torch.allclose(mixed[index], found[name][index], atol=1e-3)
        assert name is None or (mixed[index] - found[None][index]).abs().max() > 0.01


def _logits(attached: AttachedAdapters, rows: list[str | None], batch: dict) -> torch.Tensor:
    torch.manual_seed(0)  # ViLT shuffles its patches
    with attached.routed(rows) as model:
        return model(**batch).logits.float()


def test_several_adapters_train_together_on_four_bits(scenes: list[Scene], tmp_path: Path) -> None:
    base = load_model("blip2-opt-mini", quantize="4bit")
    examples = [answered(s.image, COLOR, ["blue"], f"scene {s.seed}") for s in scenes]
    splits = DataSplits(examples[:8], examples[8:], "x").with_prompt(base.entry.question_template)
    plans = [
        AdapterPlan(name, Recipe("small", rank, ("lm-attention",)), splits, FEW) for name, rank in (("a", 2), ("b", 4))
    ]
    for result in train_adapters(base, plans, tmp_path / "run", progress=False).values():
        assert result.best_validation_loss < result.first_validation_loss


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_eight_bits_answer_too(name: str, scenes: list[Scene]) -> None:
    base = load_model(name, quantize="8bit")
    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in base.model.modules())
    given = answer(base, base.model, scenes)
    assert sum(text == scene.background for text, scene in zip(given, scenes, strict=True)) >= 10


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_the_share_used_in_forecasts_is_the_true_one(row: Architecture) -> None:
    """Counted on the true architecture, without memory."""
    from benchmarks.random_checkpoints import CHECKPOINTS

    entry = next(e for e in CATALOG if e.family == row.name and not e.miniature)
    config, _ = CHECKPOINTS[entry.name]()
    with torch.device("meta"):
        model = family_class(row).model_class(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    if row.name == "blip2-t5":  # built from a configuration its head is the embeddings; loaded, a matrix of its own
        total += model.language_model.lm_head.weight.numel()
    quantised = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not any(part in name.split(".") or name.startswith(part) for part in family_class(row).unquantized)
    )
    assert quantised / total == pytest.approx(row.quantized_share, abs=0.005)
    assert total == entry.parameters
