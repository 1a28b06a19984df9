"""Every known way a BLIP-2 batch goes wrong in silence, and that it cannot here.

Where the library's own behaviour is the trap, the test shows it first: if a new release mends it, the test says so.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import Blip2Processor

from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import CheckpointError, ExampleError
from lorax_vlm.models.families.base import IGNORED_LABEL, target_loss
from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from lorax_vlm.models.families.image_tokens import require_image_tokens
from lorax_vlm.models.families.pictures import Picture, stacked
from lorax_vlm.models.families.text import decode_new_tokens, token_ids
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.types import GenerationSettings

Q = 16
GREEDY = GenerationSettings(max_new_tokens=48)


@pytest.fixture
def family(mini: LoadedModel) -> Blip2DecoderFamily:
    assert isinstance(mini.family, Blip2DecoderFamily)
    return mini.family


@pytest.fixture
def pixels(family: Blip2DecoderFamily, scenes: list[Scene]) -> torch.Tensor:
    return family.prepare([scene.image for scene in scenes])


@torch.no_grad()
def logits(mini: LoadedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return mini.model(**{key: value for key, value in batch.items() if key != "labels"}).logits


def words(family: Blip2DecoderFamily, ids: list[int]) -> str:
    return family.tokenizer.decode(ids)


# --- labels -------------------------------------------------------------------------------------------------------


def test_loss_lies_on_the_target_and_its_end_only(family: Blip2DecoderFamily, pixels: list[Picture]) -> None:
    batch = family.training_batch(pixels[:2], ["a photo of", ""], ["two red stars", "a circle"])
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    for row, target in enumerate(["two red stars", "a circle"]):
        kept = [label for label in labels[row].tolist() if label != IGNORED_LABEL]
        assert words(family, kept[:-1]).strip() == target
        assert kept[-1] == family.eos_id, "without the line break the model would never learn to stop"
        assert words(family, [family.eos_id]) == "\n"
        # Labels are the inputs where they carry loss, and image, bos, prompt and pad never do.
        carrying = labels[row] != IGNORED_LABEL
        assert torch.equal(labels[row][carrying], ids[row][carrying])
        assert not carrying[: Q + 1].any()
        assert not carrying[mask[row] == 0].any()
    assert (labels[0][: Q + 1 + 3] == IGNORED_LABEL).all()


def test_the_first_token_of_the_target_keeps_its_loss(family: Blip2DecoderFamily) -> None:
    """Masking by the length of the prompt tokenised alone is off by one when the prompt ends in a space."""
    prompt, target = "a photo of ", "red stars"
    alone = len(family.tokenizer(prompt, add_special_tokens=False)["input_ids"])
    joint, _ = token_ids(family.tokenizer, prompt + target)
    assert words(family, joint[alone:]).strip() != target, "the trap is gone"
    _, labels = family.training_row(prompt, target, "row")
    assert words(family, [label for label in labels[:-1] if label != IGNORED_LABEL]) == " red stars"


def test_no_space_without_a_prompt_and_one_with(family: Blip2DecoderFamily) -> None:
    first = [next(x for x in family.training_row(p, "red", "r")[1] if x != IGNORED_LABEL) for p in ("", "a photo of")]
    assert [words(family, [token]) for token in first] == ["red", " red"]


def test_labels_on_image_tokens_would_change_the_loss(mini, family, pixels, scenes) -> None:
    batch = family.training_batch(pixels, [""] * len(scenes), [scene.caption("plain") for scene in scenes])
    naive = batch["input_ids"]
    values = logits(mini, batch)
    assert abs(target_loss(values, batch["labels"]) - target_loss(values, naive)) > 0.1


def test_rows_that_do_not_fit_are_named_not_cut(family: Blip2DecoderFamily, pixels: list[Picture]) -> None:
    with pytest.raises(ExampleError, match=r"photo 7: \d+ tokens, the language model has 256 positions"):
        family.training_batch(pixels[:1], [""], ["red " * 300], names=["photo 7"])
    with pytest.raises(ExampleError, match="leave no room"):
        family.prompt_batch(["red " * 300])


# --- image tokens --------------------------------------------------------------------------------------------------


def test_every_row_has_all_image_tokens(family: Blip2DecoderFamily) -> None:
    ids = family.prompt_batch(["", "Question: is it? Answer:"])["input_ids"]
    assert (ids == family.image_token_id).sum(dim=1).tolist() == [Q, Q]
    broken = ids.clone()
    broken[1, (broken[1] == family.image_token_id).nonzero()[0]] = family.pad_id
    with pytest.raises(ValueError, match=r"rows with another number: \{1: 15\}"):
        require_image_tokens(broken, family.image_token_id, family.query_tokens)


def test_missing_image_tokens_would_hand_features_to_the_next_row(mini, family, pixels) -> None:
    batch = {**family.prompt_batch(["", ""]), **family.pixel_batch(pixels[:2])}
    healthy = logits(mini, batch)
    broken = batch["input_ids"].clone()
    broken[0, 0] = 5
    with torch.no_grad():
        shown = batch["pixel_values"]
        features = mini.model.get_image_features(shown, return_dict=True).pooler_output.flatten(0, 1)
        embeddings = mini.model.get_input_embeddings()(broken)
        embeddings = embeddings.masked_scatter((broken == family.image_token_id).unsqueeze(-1), features)
        shifted = mini.model.language_model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits
    assert (shifted[1] - healthy[1]).abs().max() > 0.1, "row 1 saw a feature of row 0"


@pytest.mark.parametrize("text", ["<image>", "</s>", "<pad>", "a <image><image> b", "<s>"])
def test_special_tokens_in_user_text_are_ordinary_characters(family: Blip2DecoderFamily, pixels, text: str) -> None:
    ids, _ = token_ids(family.tokenizer, text)
    assert not set(ids) & {family.image_token_id, family.bos_id, family.pad_id, 0}
    assert words(family, ids) == text
    batch = family.training_batch(pixels[:2], [text, ""], ["a star", f"a {text} star"])
    assert (batch["input_ids"] == family.image_token_id).sum(dim=1).tolist() == [Q, Q]
    through_the_processor = family.processor(images=None, text=["<image>"])["input_ids"][0]
    assert family.image_token_id in through_the_processor, "the trap is gone"


def test_unequal_numbers_of_images_and_texts(mini, family, pixels) -> None:
    with pytest.raises(ValueError, match="2 images, 1 prompts, 1 targets"):
        family.training_batch(pixels[:2], [""], ["x"])
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels[:1])
    with pytest.raises(ValueError, match="1 features, 2 prompts"):
        family.generate(mini.model, features, ["", ""], GREEDY)


# --- the image matters ---------------------------------------------------------------------------------------------


def test_shuffled_and_blank_images_change_the_loss(mini, family, pixels, scenes) -> None:
    batch = family.training_batch(pixels, [""] * len(scenes), [scene.caption("plain") for scene in scenes])
    right = target_loss(logits(mini, batch), batch["labels"])
    shuffled = target_loss(logits(mini, {**batch, "pixel_values": batch["pixel_values"].roll(1, 0)}), batch["labels"])
    grey = torch.zeros_like(batch["pixel_values"])
    blank = target_loss(logits(mini, {**batch, "pixel_values": grey}), batch["labels"])
    assert shuffled > right + 1
    assert blank > right + 1


def test_a_processor_without_query_tokens_would_ignore_the_image(mini, family, pixels, scenes) -> None:
    old = Blip2Processor(family.processor.image_processor, copy.deepcopy(family.tokenizer), num_query_tokens=None)
    inputs = old(images=[scene.image for scene in scenes[:2]], text=["a", "a"], return_tensors="pt")
    values = logits(mini, inputs)
    assert torch.equal(values, logits(mini, {**inputs, **family.pixel_batch(pixels[2:4])})), "the trap is gone"
    with pytest.raises(CheckpointError, match="the image would be ignored"):
        Blip2DecoderFamily(old, mini.model.config, "old")


# --- generation ----------------------------------------------------------------------------------------------------


def test_generation_pads_left_and_training_pads_right(family: Blip2DecoderFamily, pixels: list[Picture]) -> None:
    generation = family.prompt_batch(["", "Question: what is it? Answer:"])
    assert generation["attention_mask"][0].tolist()[0] == 0
    assert generation["attention_mask"][0].tolist()[-1] == 1
    training = family.training_batch(pixels[:2], ["", ""], ["red", "a large red circle"])
    assert training["attention_mask"][0].tolist()[-1] == 0


def test_right_padding_or_a_missing_mask_would_change_the_answer(mini, family, pixels) -> None:
    with torch.no_grad():
        features = stacked(family.encode_images(mini.model, pixels[:1]))
    alone = family.prompt_batch(["a"])
    padded = family.prompt_batch(["a", "Question: what color is the background? Answer:"])

    def next_logits(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            embeddings = mini.model.get_input_embeddings()(ids)
            embeddings = embeddings.masked_scatter((ids == family.image_token_id).unsqueeze(-1), features)
            return mini.model.language_model(inputs_embeds=embeddings, attention_mask=mask).logits[0, -1]

    reference = next_logits(alone["input_ids"], alone["attention_mask"])
    left = next_logits(padded["input_ids"][:1], padded["attention_mask"][:1])
    assert torch.allclose(left, reference, atol=1e-4)
    assert (next_logits(padded["input_ids"][:1], None) - reference).abs().max() > 0.1
    pads = padded["input_ids"].shape[1] - alone["input_ids"].shape[1]
    right_ids = torch.cat([alone["input_ids"], torch.full((1, pads), family.pad_id)], dim=1)
    right_mask = torch.cat([alone["attention_mask"], torch.zeros(1, pads, dtype=torch.long)], dim=1)
    assert (next_logits(right_ids, right_mask) - reference).abs().max() > 0.1


def test_only_new_tokens_come_back(mini, family, pixels) -> None:
    prompt = "Question: What color is the background? Answer:"
    with torch.no_grad():
        generated = family.generate(mini.model, family.encode_images(mini.model, pixels[:1]), [prompt], GREEDY)[0]
        shown = family.pixel_batch(pixels[:1])
        whole = mini.model.generate(**shown, **family.prompt_batch([prompt]), max_new_tokens=8)
    assert prompt in words(family, whole[0].tolist()), "the trap is gone"
    assert len(generated.text.split()) == 1
    assert generated.finish == "eos"


def test_the_token_limit_counts_new_tokens_only(mini, family, pixels) -> None:
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels[1:2])  # two or more objects
    generated = family.generate(mini.model, features, [""], GREEDY.replace(max_new_tokens=3))[0]
    assert (generated.tokens, generated.finish) == (3, "length")


def test_settings_of_the_outer_model_and_library_defaults_do_not_leak(mini, family, pixels, monkeypatch) -> None:
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels[:1])
    before = family.generate(mini.model, features, [""], GREEDY)
    for config in (mini.model.generation_config, mini.model.language_model.generation_config):
        for field, value in (
            ("max_new_tokens", 2),
            ("num_beams", 4),
            ("repetition_penalty", 9.0),
            ("min_new_tokens", 2),
        ):
            monkeypatch.setattr(config, field, value)
    monkeypatch.setattr(mini.model.language_model.generation_config, "eos_token_id", 7)
    assert family.generate(mini.model, features, [""], GREEDY) == before


@pytest.mark.parametrize("beams", [1, 3])
def test_the_papers_decoding_is_the_librarys_without_its_warnings(mini, family, pixels, beams: int) -> None:
    paper = GREEDY.replace(max_new_tokens=20, num_beams=beams, length_penalty=0.0, repetition_penalty=4.0)
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels)
        ours = family.generate(mini.model, features, [""] * len(pixels), paper)
        embeddings = mini.model.get_input_embeddings()(family.prompt_batch([""])["input_ids"]).repeat(len(pixels), 1, 1)
        embeddings[:, :Q] = stacked(features)
        with pytest.warns(UserWarning, match="only to newly generated tokens"):
            theirs = mini.model.language_model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
                max_new_tokens=20,
                num_beams=beams,
                repetition_penalty=4.0,
                eos_token_id=family.eos_id,
                pad_token_id=family.pad_id,
                **({"length_penalty": 0.0} if beams > 1 else {}),
            )
    assert [text.text for text in ours] == [words(family, row).strip() for row in decoded(family, theirs.tolist())]
    unpenalised = family.generate(mini.model, features, [""] * len(pixels), paper.replace(repetition_penalty=1.0))
    # Beams weigh log-probabilities, and those of a model this sure are all but zero before and after the penalty.
    assert (ours != unpenalised) == (beams == 1)


def decoded(family: Blip2DecoderFamily, rows: list[list[int]]) -> list[list[int]]:
    return [row[: row.index(family.eos_id)] if family.eos_id in row else row for row in rows]


def test_an_empty_answer_is_told_from_a_cut_one(family: Blip2DecoderFamily) -> None:
    star = token_ids(family.tokenizer, "star")[0]
    assert (
        decode_new_tokens(family.tokenizer, [family.eos_id, family.pad_id], {family.eos_id}, family.pad_id).finish
        == "empty"
    )
    ends = [*star, family.eos_id]
    padded = [*ends, family.pad_id]
    assert decode_new_tokens(family.tokenizer, ends, {family.eos_id}, family.pad_id) == decode_new_tokens(
        family.tokenizer, padded, {family.eos_id}, family.pad_id
    )
    assert decode_new_tokens(family.tokenizer, star, {family.eos_id}, family.pad_id).finish == "length"


def test_minimum_length_holds_the_end_token_back(mini, family, pixels) -> None:
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels[:1])
    generated = family.generate(mini.model, features, [""], GREEDY.replace(min_new_tokens=20, max_new_tokens=24))[0]
    assert generated.tokens >= 20


def test_sampling_repeats_with_a_seed_and_leaves_the_generator_alone(mini, family, pixels) -> None:
    with torch.no_grad():
        features = family.encode_images(mini.model, pixels[:4])
    hot = GREEDY.replace(temperature=3.0, seed=11)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = family.generate(mini.model, features, [""] * 4, hot, [1, 2, 3, 4])
    assert torch.equal(torch.rand(2), expected)
    assert family.generate(mini.model, features, [""] * 4, hot, [1, 2, 3, 4]) == first
    assert family.generate(mini.model, features, [""] * 4, hot, [5, 6, 7, 8]) != first


# --- checkpoints whose parts disagree ------------------------------------------------------------------------------


def altered(mini: LoadedModel, **changes: object) -> SimpleNamespace:
    config = mini.model.config
    text = {
        name: getattr(config.text_config, name)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    }
    top = {"image_token_index": config.image_token_index, "num_query_tokens": config.num_query_tokens}
    for name, value in changes.items():
        (text if name in text else top)[name] = value
    vision = SimpleNamespace(image_size=changes.get("image_size", config.vision_config.image_size))
    return SimpleNamespace(**top, text_config=SimpleNamespace(**text), vision_config=vision)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"image_token_index": None}, "image_token_index is None"),
        ({"image_token_index": 5}, "image_token_index is 5"),
        ({"num_query_tokens": 32}, "the model has 32"),
        ({"eos_token_id": 17}, "not a line break"),
        ({"eos_token_id": None}, "eos id None"),
        ({"pad_token_id": -1}, "pad id -1"),
        ({"bos_token_id": 10**6}, "bos id 1000000"),
        ({"image_size": 224}, "images are resized to 64x64, the model reads 224x224"),
    ],
)
def test_disagreeing_checkpoints_are_refused(mini: LoadedModel, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        Blip2DecoderFamily(mini.family.processor, altered(mini, **changes), "some/checkpoint")
    with pytest.raises(CheckpointError, match="newest revision"):
        Blip2DecoderFamily(mini.family.processor, altered(mini, **changes), "some/checkpoint")
