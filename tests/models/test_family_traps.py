"""The traps that belong to one family each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2ForConditionalGeneration, InstructBlipProcessor, ViltForQuestionAnswering

from lorax_vlm.answers import normalize_answer
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import CheckpointError, ExampleError, PromptError
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.families.blip2_t5 import Blip2EncoderDecoderFamily
from lorax_vlm.models.families.heads import grow_head
from lorax_vlm.models.families.instructblip import InstructBlipFamily
from lorax_vlm.models.families.vilt import ViltFamily
from lorax_vlm.models.families.vilt_patches import _choose
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.models.placement import Hardware, plan_placement
from lorax_vlm.runtime.attached import AttachedAdapters
from tests.adapters_for_tests import write_random_adapter


@pytest.fixture
def flan(load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared("blip2-flan-mini")


@pytest.fixture
def instruct(load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared("instructblip-mini")


@pytest.fixture
def vilt(load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared("vilt-mini")


def copy_of(base: LoadedModel, folder: Path) -> Path:
    return Path(shutil.copytree(base.folder, folder / base.folder.name))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- FLAN-T5 --------------------------------------------------------------------------------------------------------


def head_is_its_own(model: Any) -> bool:
    head, shared = model.language_model.lm_head.weight, model.language_model.shared.weight
    return head is not shared and not torch.equal(head, shared)


def test_the_head_stays_untied_whatever_happens(flan: LoadedModel, tmp_path: Path, scenes: list[Scene]) -> None:
    before = flan.model.language_model.lm_head.weight.clone()
    assert head_is_its_own(flan.model)
    flan.model.tie_weights()
    flan.model.language_model.tie_weights()
    attached = AttachedAdapters(flan)
    attached.attach("random", write_random_adapter(flan, tmp_path / "random", "heavy"))
    with attached.using("random"):
        pass
    attached.detach_all()
    assert head_is_its_own(flan.model)
    assert torch.equal(flan.model.language_model.lm_head.weight, before)


def test_tying_would_overwrite_the_head_of_a_plainly_loaded_model(flan: LoadedModel) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(flan.folder)
    model.tie_weights()
    model.language_model.tie_weights()
    assert not head_is_its_own(model), "the trap is gone"


def test_saving_and_loading_keeps_the_logits(flan: LoadedModel, tmp_path: Path, scenes: list[Scene]) -> None:
    copy = copy_of(flan, tmp_path)
    flan.model.save_pretrained(copy)
    batch = flan.family.training_batch(
        flan.family.prepare([scenes[0].image]), ["Question: What color is it? Short answer:"], ["red"]
    )
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    again = load_model(str(copy), dtype="float32")
    with torch.no_grad():
        assert torch.allclose(again.model(**inputs).logits, flan.model(**inputs).logits, atol=1e-5)
    assert not again.model.language_model.config.scale_decoder_outputs


def test_a_head_equal_to_the_embeddings_is_refused(flan: LoadedModel, tmp_path: Path) -> None:
    copy = copy_of(flan, tmp_path)
    weights = load_file(copy / "model.safetensors")
    weights["language_model.lm_head.weight"] = weights["language_model.shared.weight"].clone()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="equals the input embeddings"):
        load_model(str(copy), dtype="float32")


def test_weights_that_are_missing_are_no_random_ones(flan: LoadedModel, tmp_path: Path) -> None:
    copy = copy_of(flan, tmp_path)
    weights = load_file(copy / "model.safetensors")
    del weights["language_model.lm_head.weight"], weights["language_projection.bias"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"of its weights are not in its files: .*language_projection.bias"):
        load_model(str(copy), dtype="float32")


def test_t5_is_never_computed_in_half_precision(flan: LoadedModel) -> None:
    old_gpu = Hardware(2**36, cuda_device="old", free_cuda_bytes=2**36)
    from lorax_vlm.models.catalog import get_model_entry

    entry = get_model_entry("blip2_flan")
    assert plan_placement(entry, old_gpu).dtype == "float32"
    assert plan_placement(get_model_entry("blip2_opt"), old_gpu).dtype == "float16"
    with pytest.raises(ValueError, match="overflows in float16"):
        plan_placement(entry, old_gpu, dtype="float16")


def test_decoder_inputs_are_the_labels_shifted_as_the_model_would(flan: LoadedModel, scenes: list[Scene]) -> None:
    family = flan.family
    assert isinstance(family, Blip2EncoderDecoderFamily)
    pixels = family.prepare([scene.image for scene in scenes[:2]])
    batch = family.training_batch(pixels, ["a", "a question that is longer"], ["top left", "red"])
    assert batch["labels"][1].tolist()[-1] == IGNORED_LABEL
    assert (batch["labels"] == family.eos_id).sum(dim=1).tolist() == [1, 1]
    shifted = flan.model.language_model._shift_right(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], shifted)
    assert family.tokenizer.decode(batch["input_ids"][0][family.query_tokens :]).startswith("a</s>")


def test_overlong_questions_are_named(flan: LoadedModel) -> None:
    with pytest.raises(ExampleError, match="T5 was trained with 512"):
        flan.family.check_prompt("red " * 600)


# --- InstructBLIP ---------------------------------------------------------------------------------------------------


def test_the_qformer_reads_the_instruction_and_never_the_answer(instruct: LoadedModel, scenes: list[Scene]) -> None:
    family = instruct.family
    assert isinstance(family, InstructBlipFamily)
    pixels = family.prepare([scenes[0].image])
    batches = [family.training_batch(pixels, ["What color is it?"], [target]) for target in ("red", "blue and green")]
    assert torch.equal(batches[0]["qformer_input_ids"], batches[1]["qformer_input_ids"])
    read = family.qformer_tokenizer.decode(batches[0]["qformer_input_ids"][0])
    assert read == "[CLS] what color is it? [SEP]"
    # The library's processor gives the Q-Former whatever text it gets: with the answer the image looks different.
    leaked = family.processor(images=scenes[0].image, text="What color is it? red", return_tensors="pt")
    with torch.no_grad():
        honest = family.encode_images(instruct.model, pixels, ["What color is it?"])
        told = instruct.model.get_image_features(
            family.pixel_batch(pixels)["pixel_values"], qformer_input_ids=leaked["qformer_input_ids"], return_dict=True
        ).pooler_output
    assert (honest[0].values - told[0]).abs().max() > 1e-3, "the trap is gone"


def test_end_and_pad_come_from_the_tokenizer_whatever_the_configuration_says(
    instruct: LoadedModel, tmp_path: Path, scenes: list[Scene]
) -> None:
    """The hub's configuration says bos 0, eos 1 and pad -1."""
    copy = copy_of(instruct, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"].update(bos_token_id=0, eos_token_id=1, pad_token_id=None)
    (copy / "config.json").write_text(json.dumps(config))
    again = load_model(str(copy), dtype="float32")
    assert (again.family.bos_id, again.family.eos_id) == (2, 2)  # type: ignore[attr-defined]
    assert again.family.pad_id == again.family.tokenizer.pad_token_id  # type: ignore[attr-defined]
    prompts = [f"Question: {q} Short Answer:" for q in ("What color is the background?", "Is there a shape?")]
    pixels = again.family.prepare([scene.image for scene in scenes[:2]])
    for base in (again, instruct):
        with torch.no_grad():
            features = base.family.encode_images(base.model, pixels, prompts)
        given = base.family.generate(base.model, features, prompts, base.entry.answer_settings.replace(num_beams=1))
        assert [text.finish for text in given] == ["eos", "eos"]


def test_the_processor_is_chosen_by_name(instruct: LoadedModel, tmp_path: Path) -> None:
    copy = copy_of(instruct, tmp_path)
    edit_json(copy / "processor_config.json", processor_class="InstructBlipVideoProcessor")
    processor = load_model(str(copy), dtype="float32").family.processor  # type: ignore[attr-defined]
    assert type(processor) is InstructBlipProcessor
    edit_json(copy / "processor_config.json", num_query_tokens=None)
    with pytest.raises(CheckpointError, match=r"num_query_tokens is None, the model has 16"):
        load_model(str(copy), dtype="float32")


def test_overlong_instructions_are_named(instruct: LoadedModel) -> None:
    with pytest.raises(ExampleError, match=r"the Q-Former has 64 positions"):
        instruct.family.check_prompt("red " * 80)


# --- ViLT -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def vilt_logits(vilt: LoadedModel, images: list[Image.Image], questions: list[str]) -> torch.Tensor:
    return vilt.model(**vilt_batch(vilt, images, questions)).logits


def vilt_batch(vilt: LoadedModel, images: list[Image.Image], questions: list[str]) -> Any:
    family: Any = vilt.family
    return {**family.prompt_batch(questions), **family.pixel_batch(family.prepare(images))}


def test_a_question_longer_than_the_models_positions_is_refused(vilt: LoadedModel, scenes: list[Scene]) -> None:
    family = vilt.family
    fits, too_long = " ".join(["circle"] * 38), " ".join(["circle"] * 39)
    family.check_prompt(fits)
    assert vilt_logits(vilt, [scenes[0].image], [fits]).isfinite().all()
    with pytest.raises(PromptError, match="41 tokens, ViLT reads 40"):
        family.check_prompt(too_long)
    with pytest.raises(ExampleError, match=r"row 3: its question has 41 tokens"):
        family.check_example(too_long, "red", ["red"], "row 3")
    ids = family.tokenizer(too_long, verbose=False)["input_ids"]
    mask = torch.ones(1, len(ids), dtype=torch.long)
    uncut = vilt_batch(vilt, [scenes[0].image], ["a"])
    uncut |= {"input_ids": torch.tensor([ids]), "attention_mask": mask, "token_type_ids": mask * 0}
    with pytest.raises((RuntimeError, IndexError)):
        vilt.model(**uncut)


@pytest.mark.parametrize("size", [(1500, 100), (100, 1500), (4000, 1), (1, 4000), (930, 64), (928, 64), (64, 927)])
def test_a_banner_is_answered_and_leaves_its_neighbours_alone(
    vilt: LoadedModel, scenes: list[Scene], size: tuple[int, int]
) -> None:
    """Left to itself the library asks for an image without height, which fails the whole batch."""
    images = [scenes[0].image, scenes[1].image.resize(size), scenes[2].image]
    questions = ["Is there a star?", "What color is the background?", "Where is the circle?"]
    together = vilt_logits(vilt, images, questions)
    for row in range(3):
        assert torch.allclose(together[row], vilt_logits(vilt, [images[row]], [questions[row]])[0], atol=1e-4)


def test_proportions_that_the_library_can_are_left_alone(vilt: LoadedModel, scenes: list[Scene]) -> None:
    image = scenes[0].image.resize((700, 100))
    expected = vilt.family.processor.image_processor([image], return_tensors="pt")["pixel_values"]  # type: ignore[attr-defined]
    assert torch.equal(vilt.family.prepare([image])[0].tensors["pixel_values"], expected[0])


def test_patches_in_order_give_the_librarys_logits(vilt: LoadedModel, scenes: list[Scene]) -> None:
    """The library draws patches by chance; only rounding may differ, and ours is the same on every call."""
    library = ViltForQuestionAnswering.from_pretrained(vilt.folder).eval()
    images = [scenes[0].image, scenes[1].image.resize((224, 120)), scenes[2].image.resize((100, 224))]
    batch = vilt_batch(vilt, images, ["Is there a star?"] * 3)
    with torch.no_grad():
        expected, found = library(**batch).logits, vilt.model(**batch).logits
        assert torch.allclose(found, expected, atol=2e-5)
        assert torch.equal(vilt.model(**batch).logits, found)


def test_a_limit_of_patches_keeps_evenly_spaced_ones() -> None:
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 0]])
    assert _choose(valid, None).tolist() == [[0, 1, 2, 3, 4, 5], [1, 3, 0, 2, 4, 5]]
    assert _choose(valid, -1).tolist() == _choose(valid, None).tolist()
    assert _choose(valid, 3).tolist() == [[0, 2, 5], [1, 3, 0]]


def test_images_of_different_shape_share_a_batch(vilt: LoadedModel, scenes: list[Scene]) -> None:
    images = [scenes[0].image, scenes[1].image.resize((224, 120)), scenes[2].image.resize((100, 224))]
    questions = ["Is there a star?", "What color is the background?", "Where is the circle?"]
    together = vilt_logits(vilt, images, questions)
    for row in range(3):
        assert torch.allclose(together[row], vilt_logits(vilt, [images[row]], [questions[row]])[0], atol=1e-4)
    family = vilt.family
    one_by_one = family.pixel_batch([family.prepare([image])[0] for image in images])
    library = family.processor.image_processor(images, return_tensors="pt")  # type: ignore[attr-defined]
    assert torch.equal(one_by_one["pixel_values"], library["pixel_values"])
    assert torch.equal(one_by_one["pixel_mask"], library["pixel_mask"])
    batch = vilt_batch(vilt, images, questions)
    with torch.no_grad():
        unmasked = vilt.model(**{key: value for key, value in batch.items() if key != "pixel_mask"}).logits
    assert (unmasked - together).abs().max() > 1e-3, "the trap is gone"


def test_a_forward_pass_leaves_the_random_generator_alone(vilt: LoadedModel, scenes: list[Scene]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    vilt_logits(vilt, [scenes[0].image], ["Is there a star?"])
    assert torch.equal(torch.rand(4), expected)


def test_soft_targets_are_the_shares_of_the_annotators(vilt: LoadedModel, scenes: list[Scene]) -> None:
    family = vilt.family
    assert isinstance(family, ViltFamily)
    pixels = family.prepare([scenes[0].image] * 3)
    answers = [["Red"] * 4 + ["blue"] * 3 + ["green"] * 2 + ["a yellow"], ["two"], ["no idea", "yes"]]
    labels = family.training_batch(pixels, ["q"] * 3, ["red", "two", "yes"], answers=answers)["labels"]
    assert labels.dtype == torch.float32
    scores = [{family.labels[i]: round(float(row[i]), 2) for i in row.nonzero()[:, 0].tolist()} for row in labels]
    assert scores == [{"red": 1.0, "blue": 0.9, "green": 0.6, "yellow": 0.3}, {"2": 1.0}, {"yes": 0.3}]


def test_answers_outside_the_labels_are_named(vilt: LoadedModel, scenes: list[Scene]) -> None:
    pixels = vilt.family.prepare([scenes[0].image])
    with pytest.raises(ExampleError, match=r"photo 3: its answer 'penguin' is none of the 29 labels"):
        vilt.family.training_batch(pixels, ["what?"], ["penguin"], names=["photo 3"])


def test_a_label_plan_adds_what_occurs_and_reports_coverage(vilt: LoadedModel) -> None:
    family = vilt.family
    assert isinstance(family, ViltFamily)
    answers = [["red"], ["penguin"], ["Penguin"], ["owl"], ["2", "2", "owl"], ["the penguin"]]
    plan = family.plan_labels(answers)
    assert plan.added == ("penguin",)
    assert plan.labels == (*family.labels, "penguin")
    assert plan.coverage == pytest.approx(5 / 6)
    assert "they cover 83.3 % of the training examples" in plan.summary()
    assert family.plan_labels([["red"], ["yes"]]).added == ()


def test_options_called_a_or_the_are_labels(vilt: LoadedModel) -> None:
    """Articles would be normalised to nothing, and so would punctuation."""
    family = vilt.family
    assert isinstance(family, ViltFamily)
    plan = family.plan_labels([[option] for option in ("A", "B", "C", "The") for _ in range(3)])
    assert set(plan.added) == {"a", "b", "c", "the"}
    assert plan.coverage == 1.0


def test_a_grown_head_answers_as_before_where_it_knew_the_answer(vilt: LoadedModel, scenes: list[Scene]) -> None:
    head, labels = vilt.model.classifier, vilt.family.labels  # type: ignore[attr-defined]
    grown = grow_head(head, (*labels, "penguin", "owl"))
    states = torch.randn(5, head[0].in_features)
    with torch.no_grad():
        assert torch.equal(grown(states)[:, : len(labels)], head(states))
        assert (grown(states)[:, len(labels) :] == head[-1].bias.mean()).all()
    assert grown.labels[-1] == "owl"
    assert [normalize_answer(label) for label in grown.labels[:2]] == ["yes", "no"]
