"""Gradient checkpointing and mixed precision: less memory or time, the same training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.training.checkpointing import checkpoint_layers
from lorax_vlm.training.copies import peft_copy
from lorax_vlm.training.joint import train_adapters
from tests.training.test_joint import FAMILIES, alone, make_plans

TOLERANCE = 1e-7  # in double precision
BFLOAT16_TOLERANCE = 0.02


def saved_for_backward(base: LoadedModel, wanted: bool) -> tuple[int, dict[str, Tensor]]:
    """Elements that the forward pass keeps for the backward pass, and the gradients."""
    plan, kept = make_plans(base)[0], []
    family = base.family
    rows = plan.data.train[:4]
    pixels = family.prepare([row.open_image() for row in rows])
    batch = family.training_batch(
        pixels, [row.prompt for row in rows], [row.target for row in rows], answers=[row.answers for row in rows]
    )
    labels = batch.pop("labels")

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    model = peft_copy(base, plan.recipe, 0)
    checkpoint_layers(model, wanted)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = family.loss(model(**batch)["logits"], labels)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return sum(kept), gradients


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_keeps_less_and_gives_the_same_gradients(
    name: str, load_shared: Callable[[str], LoadedModel]
) -> None:
    base = load_shared(name)
    plain, expected = saved_for_backward(base, False)
    checkpointed, found = saved_for_backward(base, True)
    assert checkpointed < plain / 2
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        assert gradient.abs().max() > 0, key
        assert torch.allclose(found[key], gradient, rtol=1e-4, atol=1e-6), key


def test_a_run_with_checkpointing_is_a_run_without(tmp_path: Path) -> None:
    base = load_model("blip2-opt-mini", dtype="float32")
    base.model.double()
    plans = make_plans(base)
    thrifty = [
        dataclasses.replace(plan, config=dataclasses.replace(plan.config, gradient_checkpointing=True))
        for plan in plans
    ]
    together = train_adapters(base, thrifty, tmp_path / "joint", progress=False)
    for plan, other in zip(plans, thrifty, strict=True):
        expected = load_file(alone(base, plan, tmp_path / plan.name).folder / WEIGHTS_FILE)
        for result in (together[plan.name], alone(base, other, tmp_path / f"{plan.name}-thrifty")):
            found = load_file(result.folder / WEIGHTS_FILE)
            assert all(tensor.allclose(found[key], atol=TOLERANCE) for key, tensor in expected.items())


def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_in_float32(mini: LoadedModel, tmp_path: Path) -> None:
    plans = make_plans(mini)
    mixed = [dataclasses.replace(plan, config=dataclasses.replace(plan.config, mixed_precision=True)) for plan in plans]
    together = train_adapters(mini, mixed, tmp_path / "joint", progress=False)
    for plan in plans:
        result, full = together[plan.name], alone(mini, plan, tmp_path / plan.name)
        assert result.first_validation_loss != full.first_validation_loss
        assert result.best_validation_loss == pytest.approx(full.best_validation_loss, rel=BFLOAT16_TOLERANCE)
        assert {tensor.dtype for tensor in load_file(result.folder / WEIGHTS_FILE).values()} == {torch.float32}
