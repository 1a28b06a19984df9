"""Rows without padding give the padded rows' logits, loss and gradients."""

from collections.abc import Callable

import pytest
import torch

from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.families.packing import pack_rows, use_packed_attention
from lorax_vlm.models.loading import LoadedModel

TOLERANCE = 2e-5  # float32, products over other numbers of rows, logits of about 10
PROMPTS = ["", "a photo of", "Question: How many shapes are there? Answer:"]
TARGETS = ["a red circle", "three", "a small blue square at the top left and a large star, on a gray background"]


@pytest.fixture(params=["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini"])
def base(request, load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared(request.param)


@pytest.fixture
def padded(base: LoadedModel, scenes: list[Scene]) -> dict:
    prompts = PROMPTS if not base.family.image_path_reads_prompt else ["describe", *PROMPTS[1:]]
    pixels = base.family.prepare([scene.image for scene in scenes[:3]])
    features = base.family.encode_images(base.model, pixels, prompts)
    return base.family.training_batch(features, prompts, TARGETS)


def run(base: LoadedModel, batch: dict, packed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, loss, and the gradient of the first matrix that all positions pass."""
    first = ("layers.0.fc1.weight", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "layers.0.mlp.up_proj.weight")
    weight = next(p for name, p in base.model.language_model.named_parameters() if name.endswith(first))
    weight.requires_grad_(True)
    try:
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "row_positions", "row_labels")}
        model = base.plain_copy().model
        if packed:
            use_packed_attention(model)
        logits = model(**inputs).logits
        loss = base.family.loss(logits, batch["labels"])
        (gradient,) = torch.autograd.grad(loss, weight)
        return logits.detach(), loss.detach(), gradient
    finally:
        weight.requires_grad_(False)


def test_packed_rows_are_padded_rows(base: LoadedModel, padded: dict) -> None:
    usual = base.model.language_model.config._attn_implementation
    logits, loss, gradient = run(base, padded, packed=False)
    batch = pack_rows(padded)
    packed_logits, packed_loss, packed_gradient = run(base, batch, packed=True)
    assert batch["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    before = 0 if base.family.name == "blip2-t5" else 1  # a decoder-only model's logits are those of the next position
    assert packed_loss == pytest.approx(float(loss), abs=TOLERANCE)
    assert torch.allclose(packed_gradient, gradient, atol=TOLERANCE)
    assert gradient.abs().max() > 100 * TOLERANCE
    start = 0
    for row, count in enumerate(batch["row_labels"]):
        own = padded["labels"][row]
        first, last = (own != IGNORED_LABEL).nonzero()[[0, -1], 0].tolist()
        assert count == last - first + 1 + before
        found = packed_logits[0, start : start + count]
        assert torch.allclose(found, logits[row, first - before : last + 1], atol=20 * TOLERANCE)
        start += count
    assert base.model.language_model.config._attn_implementation == usual


def test_a_row_does_not_see_its_neighbours(base: LoadedModel, padded: dict) -> None:
    """Another text in the last row changes nothing in the others."""
    batch = pack_rows(padded)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, -3:-1] = 7
    one, _, _ = run(base, batch, packed=True)
    other, _, _ = run(base, changed, packed=True)
    own = sum(batch["row_labels"][:2])
    assert torch.equal(one[0, :own], other[0, :own])
    assert not torch.equal(one[0, own:], other[0, own:])
