"""What every family must do, on all four miniatures, and what transformers would do by hand on the same inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
)

from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.types import GenerationSettings

FAMILIES = ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"]
WRITING = FAMILIES[:3]
QUESTIONS = [
    "What color is the background?",
    "Is there a red circle?",
    "Where is the blue star?",
    "Is there a shape?",
]
DECODING = [
    GenerationSettings(max_new_tokens=24),
    GenerationSettings(max_new_tokens=24, num_beams=3, length_penalty=-1.0),
]


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared(request.param)


@pytest.fixture(params=WRITING)
def writer(request: pytest.FixtureRequest, load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared(request.param)


def prompts_for(base: LoadedModel, count: int) -> list[str]:
    return [base.entry.question_prompt(QUESTIONS[index % len(QUESTIONS)]) for index in range(count)]


@torch.no_grad()
def answer(
    base: LoadedModel,
    scenes: list[Scene],
    prompts: list[str],
    settings: GenerationSettings,
    seeds: Sequence[int] | None = None,
) -> list[Any]:
    features = base.family.encode_images(base.model, base.family.prepare([scene.image for scene in scenes]), prompts)
    return base.family.generate(base.model, features, prompts, settings, seeds)


def make_batch(base: LoadedModel, scenes: list[Scene], **changes: Any) -> dict[str, torch.Tensor]:
    asked = [next((q, a) for kind, q, a in scene.questions() if kind == "place") for scene in scenes]
    pixels = base.family.prepare([scene.image for scene in scenes])
    arguments = {
        "prompts": [base.entry.question_prompt(q) for q, _ in asked],
        "targets": [a for _, a in asked],
        **changes,
    }
    return base.family.training_batch(pixels, arguments["prompts"], arguments["targets"])


@torch.no_grad()
def loss_of(base: LoadedModel, batch: dict[str, torch.Tensor]) -> float:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    return float(base.family.loss(base.model(**inputs).logits, batch["labels"]))


# --- plain transformers, by hand ------------------------------------------------------------------------------------


def plain_model(base: LoadedModel) -> tuple[Any, Any]:
    folder = base.folder
    if base.family.name == "vilt":
        processor = ViltProcessor.from_pretrained(folder)
        processor.image_processor = ViltImageProcessorPil.from_pretrained(folder)
        return ViltForQuestionAnswering.from_pretrained(folder).eval(), processor
    by_family = {"instructblip": (InstructBlipForConditionalGeneration, InstructBlipProcessor)}
    model_class, processor_class = by_family.get(base.family.name, (Blip2ForConditionalGeneration, Blip2Processor))
    processor = processor_class.from_pretrained(folder)
    processor.image_processor = BlipImageProcessorPil.from_pretrained(folder)
    return model_class.from_pretrained(folder).eval(), processor


@torch.no_grad()
def answer_plain(base: LoadedModel, plain: tuple[Any, Any], image: Any, prompt: str, settings: Any) -> str:
    model, processor = plain
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    if base.family.name == "vilt":
        return model.config.id2label[int(model(**inputs).logits.argmax())]
    ids = model.generate(
        **inputs,
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        eos_token_id=base.family.eos_id,
        pad_token_id=base.family.pad_id,
    )
    new = ids[0] if base.family.name == "blip2-t5" else ids[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", DECODING, ids=["greedy", "beams"])
def test_answers_equal_plain_transformers(base: LoadedModel, scenes: list[Scene], settings: Any) -> None:
    plain = plain_model(base)
    given = answer(base, scenes, prompts_for(base, len(scenes)), settings)
    for scene, prompt, ours in zip(scenes, prompts_for(base, len(scenes)), given, strict=True):
        assert ours.text == answer_plain(base, plain, scene.image, prompt, settings)
        assert ours.text


@pytest.mark.parametrize("settings", DECODING, ids=["greedy", "beams"])
def test_a_batch_equals_each_row_alone(base: LoadedModel, scenes: list[Scene], settings: Any) -> None:
    prompts = [prompt if index % 2 else f"{prompt} " * 2 for index, prompt in enumerate(prompts_for(base, 12))]
    together = answer(base, scenes, prompts, settings)
    alone = [answer(base, [scene], [prompt], settings)[0] for scene, prompt in zip(scenes, prompts, strict=True)]
    assert together == alone


@pytest.mark.filterwarnings("ignore")
def test_the_loss_equals_plain_transformers(base: LoadedModel, scenes: list[Scene]) -> None:
    batch = make_batch(base, scenes)
    with torch.no_grad():
        expected = plain_model(base)[0](**batch).loss
    assert loss_of(base, batch) == pytest.approx(float(expected), rel=1e-5)


# --- what must hold for all -----------------------------------------------------------------------------------------


def test_the_answer_depends_on_the_image(base: LoadedModel, scenes: list[Scene]) -> None:
    batch = make_batch(base, scenes)
    shuffled = {**batch, "pixel_values": batch["pixel_values"].roll(1, 0)}
    assert loss_of(base, shuffled) > loss_of(base, batch) + 0.1


def test_accumulated_gradients_equal_one_large_batch(base: LoadedModel, scenes: list[Scene]) -> None:
    """transformers' own loss is normalised per batch for T5 and ViLT, whatever the step's number of labels."""
    ends = ("v_proj.weight", ".v.weight", "value.weight")
    parameter = next(p for name, p in base.model.named_parameters() if name.endswith(ends))
    parameter.requires_grad_(True)
    try:
        whole = make_batch(base, scenes)
        count = int((whole["labels"] != IGNORED_LABEL).sum())

        def gradient(parts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
            parameter.grad = None
            for part in parts:
                inputs = {key: value for key, value in part.items() if key != "labels"}
                base.family.loss(base.model(**inputs).logits, part["labels"], count).backward()
            assert parameter.grad is not None
            return parameter.grad.clone()

        parts = [{key: value[rows] for key, value in whole.items()} for rows in (slice(0, 5), slice(5, 12))]
        assert torch.allclose(gradient([whole]), gradient(parts), atol=1e-6)
    finally:
        parameter.grad = None
        parameter.requires_grad_(False)


@pytest.mark.parametrize("text", ["<image>", "</s>", "<pad>", "[PAD]", "[SEP]", "a <image><image> b"])
def test_special_tokens_in_a_question_are_ordinary_characters(
    base: LoadedModel, scenes: list[Scene], text: str
) -> None:
    special = set(base.family.tokenizer.all_special_ids) - {base.family.tokenizer.unk_token_id}
    plain = make_batch(base, scenes[:2], prompts=["is it red", "is it red"])
    hostile = make_batch(base, scenes[:2], prompts=[f"is it {text}", "is it red"])
    for row in range(2):
        counts = [sum(int((b["input_ids"][row] == token).sum()) for token in special) for b in (plain, hostile)]
        padding = [int((b["attention_mask"][row] == 0).sum()) for b in (plain, hostile)]
        assert counts[0] - padding[0] == counts[1] - padding[1]
    settings = DECODING[0]
    alone = answer(base, scenes[1:2], ["is it red"], settings)[0]
    assert answer(base, scenes[:2], [f"is it {text}", "is it red"], settings)[1] == alone


def test_numbers_of_rows_must_agree(base: LoadedModel, scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="One row each is needed"):
        make_batch(base, scenes[:2], prompts=["one"])
    pixels = base.family.prepare([scenes[0].image])
    with torch.no_grad():
        features = base.family.encode_images(base.model, pixels, ["one"])
    with pytest.raises(ValueError, match="One row each is needed"):
        base.family.generate(base.model, features, ["one", "two"], DECODING[0])


def test_rows_explain_themselves(base: LoadedModel, scenes: list[Scene]) -> None:
    batch = make_batch(base, scenes[:2], targets=["top left", "red"])
    for row, target in enumerate(["top left", "red"]):
        pieces = base.family.explain_row(batch, row)
        learnt = "".join(piece for piece, carries in pieces if carries)
        assert target in learnt.replace("</s>", "")
        assert "?" in "".join(piece for piece, carries in pieces if not carries)
        assert base.family.ends_with_eos(batch, row)


def test_a_target_without_its_end_is_noticed(writer: LoadedModel, scenes: list[Scene]) -> None:
    batch = make_batch(writer, scenes[:1])
    labels = batch["labels"]
    labels[0, (labels[0] != IGNORED_LABEL).nonzero()[-1]] = 5
    assert not writer.family.ends_with_eos(batch, 0)


def test_empty_targets_are_named(writer: LoadedModel, scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="row 0: its target text is empty"):
        make_batch(writer, scenes[:1], targets=["  "])


def test_sampling_is_repeatable_and_leaves_the_generator_alone(writer: LoadedModel, scenes: list[Scene]) -> None:
    settings, seeds = GenerationSettings(max_new_tokens=8, temperature=2.0, seed=5), range(len(scenes))
    prompts = prompts_for(writer, len(scenes))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = answer(writer, scenes, prompts, settings, seeds)
    assert torch.equal(torch.rand(3), expected)
    assert first == answer(writer, scenes, prompts, settings, seeds)
    assert first != answer(writer, scenes, prompts, settings, [seed + 100 for seed in seeds])
    with pytest.raises(ValueError, match="each needs its own"):
        answer(writer, scenes, prompts, settings)


def test_image_features_serve_any_prompt_unless_the_family_says_no(writer: LoadedModel, scenes: list[Scene]) -> None:
    pixels = writer.family.prepare([scenes[0].image])
    with torch.no_grad():
        one, two = (writer.family.encode_images(writer.model, pixels, [text]) for text in ("a", "what color is it"))
    assert torch.equal(one[0].values, two[0].values) is not writer.family.image_path_reads_prompt
