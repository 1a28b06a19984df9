"""What is kept of images during a run, and that it changes nothing."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.data.world.examples import scene_questions
from lorax_vlm.models.families.pictures import Features, of_rows, stacked
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training import trainer as trainer_module
from lorax_vlm.training.batches import FamilyCollator
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter

FEW = TrainConfig(max_steps=8, batch_size=6, gradient_accumulation=2, eval_every=4, learning_rate=5e-3, patience=None)
LM_ONLY = Recipe("lm", rank=4, groups=("lm-attention",))


def splits_for(base: LoadedModel) -> DataSplits:
    train = scene_questions("counting", "train", 20, per_scene=None)
    return DataSplits(train, scene_questions("counting", "validation", 6), "x").with_prompt(
        base.entry.question_template
    )


def losses(result: Any) -> list[float]:
    return [row["eval_loss"] for row in result.history if "eval_loss" in row]


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini"])
def test_kept_features_give_the_same_run(
    name: str, load_shared: Callable[[str], LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_shared(name)
    splits = splits_for(base)
    kept = train_adapter(base, AdapterPlan("adapter", LM_ONLY, splits, FEW), tmp_path / "kept", progress=False)
    monkeypatch.setattr(trainer_module, "frozen_image_path", lambda *_: None)
    anew = train_adapter(base, AdapterPlan("adapter", LM_ONLY, splits, FEW), tmp_path / "anew", progress=False)
    assert losses(kept) == pytest.approx(losses(anew), rel=1e-5)
    assert losses(kept)[-1] != losses(kept)[0]


def test_adapters_of_the_image_path_look_at_pixels(mini: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    assert trainer_module.frozen_image_path(mini, LM_ONLY) is not None
    caplog.set_level("INFO")
    for group in ("vision", "qformer", "projection"):
        recipe = Recipe("seeing", rank=2, groups=("lm-qv", group))
        assert trainer_module.frozen_image_path(mini, recipe) is None
        assert caplog.messages[-1].startswith(f"Recipe 'seeing' changes the image path ({group})"), "the reason is said"


def test_vilt_has_nofrozen_image_path(load_shared: Callable[[str], LoadedModel]) -> None:
    assert trainer_module.frozen_image_path(load_shared("vilt-mini"), LM_ONLY) is None


class Opened:
    """Counts how often an image is opened."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Image.Image:
        self.count += 1
        return Image.new("RGB", (64, 64))


def test_an_image_is_opened_once_as_long_as_memory_allows(mini: LoadedModel) -> None:
    one, other = Opened(), Opened()
    named = {one: "1" * 64, other: "2" * 64}  # their content is known, so nothing is opened to find it out
    examples = [Example(image, "red", f"{i}", digest=named[image]) for i, image in enumerate((one, other) * 2)]
    collate = FamilyCollator(mini.family)
    for _ in range(3):
        collate(examples)
    assert (one.count, other.count) == (1, 1)
    size = mini.family.prepare([Image.new("RGB", (64, 64))])[0].nbytes
    collate = FamilyCollator(mini.family, memory_bytes=size)
    for _ in range(3):
        collate(examples)
    assert sorted((one.count, other.count)) == [2, 4]


def test_features_of_an_instruction_belong_to_it(load_shared: Callable[[str], LoadedModel]) -> None:
    base = load_shared("instructblip-mini")
    seen: list[list[str]] = []

    def encode(pictures: Any, prompts: Any) -> list[Features]:
        seen.append(list(prompts))
        return of_rows(torch.zeros(len(pictures), 16, 160))

    image = Image.new("RGB", (64, 64))
    collate = FamilyCollator(base.family, encode)
    examples = [answered(image, q, ["red"], q) for q in ("one", "two", "one")]
    splits = DataSplits(examples, examples, "x").with_prompt("{question}")
    for _ in range(2):
        collate(list(splits.train))
    assert seen == [["one", "two"]]


@pytest.mark.parametrize("how", ["features", "pixels", "distinct pixels"])
def test_a_batch_shows_each_rows_own_image_when_images_come_and_go(how: str, mini: LoadedModel) -> None:
    """Objects of a stream die, and the next one gets their address."""
    encode = trainer_module.frozen_image_path(mini, LM_ONLY)
    assert encode is not None
    collate = FamilyCollator(mini.family, encode if how == "features" else None, distinct=how == "distinct pixels")
    for step in range(12):
        pictures = [make_scene(8 * step + row).image for row in range(8)]
        kinds: list[Any] = [encoded(pictures[0]), pictures[1], np.asarray(pictures[2]), *map(encoded, pictures[3:])]
        batch = collate([Example(kind, "x", f"row {row}") for row, kind in enumerate(kinds)])
        prepared = mini.family.prepare(pictures)
        expected = mini.family.pixel_batch(prepared)["pixel_values"]
        if how == "features":
            shown = batch["mm_encoder_outputs"]["image"].pooler_output
            expected = stacked(encode(prepared, [""] * 8))
        elif how == "pixels":
            shown = batch["pixel_values"]
        else:
            distinct = mini.family.pixel_batch(batch["image_pictures"])["pixel_values"]
            shown = distinct[batch["image_rows"]]
        assert torch.allclose(shown, expected, atol=1e-4)
        del pictures, kinds


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


SEEING = Recipe("sees", rank=4, groups=("lm-qv", "vision", "qformer"))


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini"])
def test_an_image_that_several_rows_look_at_is_encoded_once(
    name: str, load_shared: Callable[[str], LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, and so the run, are those of encoding it for every row."""
    base = load_shared(name)
    splits = splits_for(base)
    counts: list[int] = []
    original = type(base.model).get_image_features

    def spy(self: Any, pixels: torch.Tensor, **inputs: Any) -> Any:
        counts.append(len(pixels))
        return original(self, pixels, **inputs)

    monkeypatch.setattr(type(base.model), "get_image_features", spy)
    once = train_adapter(base, AdapterPlan("adapter", SEEING, splits, FEW), tmp_path / "once", progress=False)
    distinct, counts[:] = sum(counts), []
    monkeypatch.setattr(base.family, "takes_features", False)
    each = train_adapter(base, AdapterPlan("adapter", SEEING, splits, FEW), tmp_path / "each", progress=False)
    monkeypatch.undo()
    assert losses(once) == pytest.approx(losses(each), rel=1e-4)
    assert losses(once)[-1] != losses(once)[0]
    assert distinct < sum(counts) or base.family.image_path_reads_prompt
