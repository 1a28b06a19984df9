"""Our tensors, logits and texts equal those of plain transformers, called by hand on the same inputs."""

from pathlib import Path

import pytest
import torch
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.families.base import target_loss
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.types import GenerationSettings

PROMPTS = [
    "",
    "Question: What color is the background? Answer:",
    "Question: Is there a red circle? Answer:",
    "a",
    "Question: Where is the blue star? Answer:",
]
DECODING = [
    GenerationSettings(max_new_tokens=40),
    GenerationSettings(max_new_tokens=40, num_beams=3, length_penalty=-1.0),
]


@pytest.fixture(scope="module")
def plain(shared_mini: LoadedModel) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """The shipped folder, loaded without any of our code."""
    folder = shared_mini.entry.source
    return Blip2ForConditionalGeneration.from_pretrained(folder).eval(), Blip2Processor.from_pretrained(folder)


def generate_plain(plain, image, prompt: str, settings: GenerationSettings) -> str:
    model, processor = plain
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    ids = model.generate(
        **inputs,
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        eos_token_id=model.config.text_config.eos_token_id,
    )
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_it_loads_in_float32(plain) -> None:
    assert {parameter.dtype for parameter in plain[0].parameters()} == {torch.float32}


@pytest.mark.parametrize("settings", DECODING, ids=["greedy", "beams"])
def test_text_equals_plain_transformers(mini: LoadedModel, plain, scenes: list[Scene], settings) -> None:
    for scene, prompt in zip(scenes, PROMPTS * 3, strict=False):
        features = mini.family.encode_images(mini.model, mini.family.prepare([scene.image]))
        ours = mini.family.generate(mini.model, features, [prompt], settings)[0].text
        assert ours == generate_plain(plain, scene.image, prompt, settings)
        assert ours


def test_defaults_of_plain_generate_give_the_same_caption(mini: LoadedModel, plain, scenes: list[Scene]) -> None:
    """The checkpoint's own generation settings stop at the line break too."""
    model, processor = plain
    for scene in scenes:
        inputs = processor(images=scene.image, return_tensors="pt")
        text = processor.decode(model.generate(**inputs, max_new_tokens=96)[0], skip_special_tokens=True).strip()
        features = mini.family.encode_images(mini.model, mini.family.prepare([scene.image]))
        assert mini.family.generate(mini.model, features, [""], DECODING[0].replace(max_new_tokens=96))[0].text == text


@pytest.mark.parametrize("prompt", PROMPTS)
def test_input_ids_equal_the_processor(mini: LoadedModel, plain, scenes: list[Scene], prompt: str) -> None:
    expected = plain[1](images=scenes[0].image, text=prompt, return_tensors="pt")
    assert mini.family.prompt_batch([prompt])["input_ids"].tolist() == expected["input_ids"].tolist()
    pixels = mini.family.pixel_batch(mini.family.prepare([scenes[0].image]))["pixel_values"]
    assert torch.equal(pixels, expected["pixel_values"])


def test_loss_equals_plain_transformers(mini: LoadedModel, plain, scenes: list[Scene]) -> None:
    texts = [scene.caption("detailed") for scene in scenes]
    pixels = mini.family.prepare([scene.image for scene in scenes])
    batch = mini.family.training_batch(pixels, ["describe"] * len(texts), texts)
    with torch.no_grad():
        expected = plain[0](**batch).loss
        logits = mini.model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    assert torch.allclose(target_loss(logits, batch["labels"]), expected, atol=1e-6)


@pytest.mark.parametrize("settings", DECODING, ids=["greedy", "beams"])
def test_a_batch_of_mixed_prompts_equals_each_row_alone(mini: LoadedModel, scenes: list[Scene], settings) -> None:
    prompts = (PROMPTS * 3)[: len(scenes)]
    features = mini.family.encode_images(mini.model, mini.family.prepare([scene.image for scene in scenes]))
    together = mini.family.generate(mini.model, features, prompts, settings)
    alone = [
        mini.family.generate(mini.model, features[row : row + 1], [prompt], settings)[0]
        for row, prompt in enumerate(prompts)
    ]
    assert together == alone


def test_weights_are_half_precision_on_disk_and_below_6_mb(mini: LoadedModel) -> None:
    files = [path for path in Path(mini.entry.source).iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6_000_000
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]
