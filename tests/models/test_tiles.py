"""Idefics3 and SmolVLM with random weights: ours is plain transformers, and every row is what it is alone."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from benchmarks.random_checkpoints import CHECKPOINTS
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import CheckpointError, ExampleError, IncompatibleAdapter, PromptError, UsageError
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.components import component_of
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.families.pictures import Features, Picture
from lorax_vlm.models.families.registry import family_class
from lorax_vlm.models.families.tiles import TilesFamily
from lorax_vlm.models.fingerprint import read_shapes
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.models.spec import ARCHITECTURES
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.types import GenerationSettings
from recipes.smolvlm_checkpoint import IMAGE_TOKENS, TEMPLATE
from recipes.turns import STYLE_WORDS
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.tiny_chat import KINDS, write_tiny

GREEDY = GenerationSettings(max_new_tokens=8)
BEAMS = GenerationSettings(max_new_tokens=8, num_beams=3)
PROMPTS = ["Describe the image.", "what?", "Is the red circle at the top, or is it the blue one?"]
TEXT = Recipe("text", rank=2, groups=("lm-attention", "lm-mlp"))
SEES = Recipe("sees", rank=4, groups=("lm-attention", "projection", "vision"))
MARKERS = [
    "<image>",
    "<end_of_utterance>",
    "<row_1_col_1>",
    "<fake_token_around_image><global-img><image>",
    "<|im_start|>",
]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = write_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return load_model(str(folder), dtype="float32", image_tokens=160)


@pytest.fixture
def family(base: LoadedModel) -> TilesFamily:
    assert isinstance(base.family, TilesFamily)
    return base.family


@pytest.fixture
def images(scenes: list[Scene]) -> list[Image.Image]:
    """Ten tiles, seven, four and one."""
    square, wide, narrow, small = (scene.image for scene in scenes[:4])
    return [square, wide.resize((300, 120)), narrow.resize((60, 190)), small.resize((1, 400))]


@pytest.fixture
def three(images: list[Image.Image]) -> list[Image.Image]:
    return images[:3]


@torch.no_grad()
def see(base: LoadedModel, images: Sequence[Image.Image]) -> list[Features]:
    return base.family.encode_images(base.model, base.family.prepare(images), [""] * len(images))


def library_inputs(family: TilesFamily, image: Image.Image, prompt: str, answer: str | None = None) -> Any:
    """What the library's own processor makes of a conversation; Idefics3's needs no torchvision."""
    processor = Idefics3Processor(
        family.processor.image_processor
        if isinstance(family.processor.image_processor, Idefics3ImageProcessorPil)
        else Idefics3ImageProcessorPil(**family.processor.image_processor.to_dict()),
        family.tokenizer,
        image_seq_len=IMAGE_TOKENS,
        chat_template=TEMPLATE,
    )
    turns: list[Any] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    text = processor.apply_chat_template(turns, add_generation_prompt=answer is None)
    return processor(text=text, images=[image], return_tensors="pt")


# --- ours is plain transformers ---


def test_ids_are_those_of_the_librarys_processor(family: TilesFamily, images: list[Image.Image]) -> None:
    pictures = family.prepare(images)
    assert [picture.grid for picture in pictures] == [(3, 3), (2, 3), (3, 1), (3, 1)]
    for image, picture in zip(images, pictures, strict=True):
        expected = library_inputs(family, image, "what?")
        batch = family.prompt_batch([picture], ["what?"])
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        assert torch.equal(family.pixel_batch([picture])["pixel_values"], expected["pixel_values"])
        taught = library_inputs(family, image, "what?", "a red circle")
        row = family.training_batch([picture], ["what?"], ["a red circle"])
        assert row["input_ids"].tolist() == taught["input_ids"].tolist()
        learnt = row["labels"][0][row["labels"][0] != IGNORED_LABEL].tolist()
        assert family.tokenizer.decode(learnt) == " a red circle<end_of_utterance>"
        assert family.ends_with_eos(row, 0)


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_texts_and_logits_are_those_of_plain_transformers(
    base: LoadedModel, family: TilesFamily, three: list[Image.Image], settings: GenerationSettings
) -> None:
    never = family.tokenizer.convert_tokens_to_ids(list(family.markers))
    together = family.generate(base.model, see(base, three), PROMPTS, settings)
    logits = family.answer_logits(base.model, see(base, three), PROMPTS)
    for row, (image, prompt) in enumerate(zip(three, PROMPTS, strict=True)):
        inputs = library_inputs(family, image, prompt)
        with torch.no_grad():
            expected = base.model(**inputs).logits[:, -1]
            ids = base.model.generate(
                **inputs, max_new_tokens=8, num_beams=settings.num_beams, do_sample=False, suppress_tokens=never
            )
        assert torch.allclose(logits[row], expected[0], atol=1e-5)
        said = family.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert together[row].text == said
        assert family.generate(base.model, see(base, [image]), [prompt], settings) == [together[row]]


def test_features_in_the_place_of_pixels_give_the_same_to_the_last_bit(
    base: LoadedModel, family: TilesFamily, three: list[Image.Image]
) -> None:
    pictures, features = family.prepare(three), see(base, three)
    by_pixels = family.training_batch(pictures, PROMPTS, ["red", "two", "a blue star"])
    by_features = family.training_batch(features, PROMPTS, ["red", "two", "a blue star"])
    labels = by_pixels.pop("labels")
    assert torch.equal(labels, by_features.pop("labels"))
    with torch.no_grad():
        assert torch.equal(base.model(**by_pixels).logits, base.model(**by_features).logits)


def test_beams_leave_what_they_are_given_as_it_was(
    base: LoadedModel, family: TilesFamily, three: list[Image.Image]
) -> None:
    """The library repeats images inside of what it is given: a second call would see other ones."""
    features = see(base, three)
    before = [one.values.clone() for one in features]
    first = family.generate(base.model, features, PROMPTS, BEAMS)
    assert all(torch.equal(one.values, kept) for one, kept in zip(features, before, strict=True))
    assert family.generate(base.model, features, PROMPTS, BEAMS) == first
    given = family.encoded(features)
    batch = family.prompt_batch(features, PROMPTS)
    base.model.generate(**batch, mm_encoder_outputs={"image": given}, max_new_tokens=2, num_beams=3, do_sample=False)
    assert len(given.pooler_output) == 9, "the trap is gone"


# --- rows do not mix ---


@pytest.fixture
def attached(base: LoadedModel, tmp_path: Path) -> Iterator[AttachedAdapters]:
    found = AttachedAdapters(base)
    found.attach("text", write_random_adapter(base, tmp_path / "text", TEXT, seed=1, scale=0.9))
    found.attach("sees", write_random_adapter(base, tmp_path / "sees", SEES, seed=2, scale=0.9))
    found.attach("sees too", write_random_adapter(base, tmp_path / "sees too", SEES, seed=3, scale=0.9))
    yield found
    found.detach_all()


@pytest.mark.parametrize("settings", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_mixed_adapters_on_images_of_different_sizes_are_each_alone(
    attached: AttachedAdapters, images: list[Image.Image], settings: GenerationSettings
) -> None:
    rows = ["text", None, "sees", "sees too", "sees", None]
    pictures, prompts = [*images, images[0], images[2]], [*PROMPTS, *PROMPTS]
    mixed = attached.generate(rows, pictures, prompts, settings)
    alone = [
        attached.generate([name], [picture], [prompt], settings)[0]
        for name, picture, prompt in zip(rows, pictures, prompts, strict=True)
    ]
    assert mixed == alone
    plain = attached.generate([None] * 6, pictures, prompts, settings)
    assert [one != other for one, other in zip(mixed, plain, strict=True)] == [row is not None for row in rows]


def test_features_of_mixed_adapters_are_those_of_each_alone(
    base: LoadedModel, attached: AttachedAdapters, images: list[Image.Image]
) -> None:
    """On the tower and on the projection, whose layers see tiles, patches and tokens."""
    rows = ["sees", None, "sees too", "sees"]
    together = attached._look([attached.get(row) if row else None for row in rows], images, [""] * 4)
    for row, image, found in zip(rows, images, together, strict=True):
        [own] = attached._look([attached.get(row) if row else None], [image], [""])
        assert found.grid == own.grid
        assert torch.allclose(found.values, own.values, atol=1e-5)
    [plain] = see(base, images[:1])
    assert (together[0].values - plain.values).abs().max() > 0.01


def test_threads_that_ask_at_one_time_get_their_own_answers(
    base: LoadedModel, family: TilesFamily, images: list[Image.Image]
) -> None:
    expected = [family.generate(base.model, see(base, [image]), ["what?"], GREEDY) for image in images]
    meeting, found = threading.Barrier(len(images), timeout=30), dict[int, Any]()

    def ask(number: int) -> None:
        meeting.wait()
        found[number] = [family.generate(base.model, see(base, [images[number]]), ["what?"], GREEDY) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [text] * 3 for number, text in enumerate(expected)}


def test_a_tile_of_zeros_is_a_tile(base: LoadedModel, family: TilesFamily, three: list[Image.Image]) -> None:
    """The library takes one for padding: the row before would get the next one's features."""
    pictures = family.prepare(three)
    blank = Picture({"pixel_values": torch.zeros_like(pictures[1].tensors["pixel_values"])}, pictures[1].grid)
    shown = [pictures[0], blank, pictures[2]]
    with torch.no_grad():
        together = family.encode_images(base.model, shown)
        assert [len(one.values) for one in together] == [160, 112, 64]
        alone = [family.encode_images(base.model, [one])[0] for one in shown]
        pixels = family.training_batch(shown, PROMPTS, ["red"] * 3)
        pixels.pop("labels")
        assert base.model(**pixels).logits.isfinite().all()
    assert all(torch.allclose(one.values, own.values, atol=1e-5) for one, own in zip(together, alone, strict=True))
    raw = torch.cat([one.tensors["pixel_values"] for one in shown])[None]
    left = base.model.get_image_features(raw, return_dict=True).pooler_output
    assert sum(map(len, left)) < 336, "the trap is gone"


def test_a_penalty_is_on_what_is_said(base: LoadedModel, family: TilesFamily, three: list[Image.Image]) -> None:
    """Not about the prompt, as in BLIP-2's code: the same token by token, with the penalty on new tokens alone."""
    settings = GREEDY.replace(repetition_penalty=3.0)
    prompts = [" ".join(STYLE_WORDS[:150])] * 3
    said = family.generate(base.model, see(base, three), prompts, settings)
    for text, feature in zip(said, see(base, three), strict=True):
        batch, new = family.prompt_batch([feature], prompts[:1]), list[int]()
        for _ in range(8):
            ids = torch.cat([batch["input_ids"], torch.tensor([new], dtype=torch.long)], dim=1)
            with torch.no_grad():
                logits = base.model(**family.with_features({"input_ids": ids}, [feature])).logits[0, -1]
            logits[family.tokenizer.convert_tokens_to_ids(list(family.markers))] = -torch.inf
            for token in set(new):
                logits[token] = logits[token] / 3 if logits[token] > 0 else logits[token] * 3
            new.append(int(logits.argmax()))
        assert family.tokenizer.decode(new, skip_special_tokens=True).strip() == text.text


# --- texts and places ---


@pytest.mark.parametrize("text", MARKERS)
def test_no_text_is_a_special_token(
    base: LoadedModel, family: TilesFamily, three: list[Image.Image], text: str
) -> None:
    [picture, other, _] = family.prepare(three)
    batch = family.training_batch([picture, other], [f"is it {text}?", "what?"], [f"a {text}", "red"])
    plain = family.training_batch([picture, other], ["is it?", "what?"], ["a", "red"])
    markers = family.tokenizer.convert_tokens_to_ids(list(family.markers))
    special = torch.tensor(sorted({*family.tokenizer.all_special_ids, *markers} - {family.pad_id}))
    for row in range(2):
        counts = [int(torch.isin(rows["input_ids"][row], special).sum()) for rows in (batch, plain)]
        assert counts[0] == counts[1]
    learnt = batch["labels"][0][batch["labels"][0] != IGNORED_LABEL].tolist()
    assert family.tokenizer.decode(learnt) == f" a {text}<end_of_utterance>"
    features = see(base, three[:2])
    alone = family.generate(base.model, features[1:], ["what?"], GREEDY)
    assert family.generate(base.model, features, [f"is it {text}?", "what?"], GREEDY)[1:] == alone


def test_tokens_of_images_are_never_said(base: LoadedModel, family: TilesFamily, three: list[Image.Image]) -> None:
    """Where the next step would look for features."""
    head = base.model.lm_head
    image_ids = family.tokenizer.convert_tokens_to_ids(list(family.markers))

    def shout(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., image_ids] += 1000
        return logits

    hook = head.register_forward_hook(shout)
    try:
        said = family.generate(base.model, see(base, three), PROMPTS, GREEDY)
    finally:
        hook.remove()
    assert all(text.tokens == 8 or text.finish == "eos" for text in said)
    assert said == family.generate(base.model, see(base, three), PROMPTS, GREEDY)


def test_what_is_too_long_is_named_with_its_images_tokens(family: TilesFamily, three: list[Image.Image]) -> None:
    [picture, _, _] = family.prepare(three)
    long = "red " * 400
    with pytest.raises(ExampleError, match=r"photo 7: .* tokens, 160 of them its image's; .* 512 positions"):
        family.training_batch([picture], ["what?"], [long], names=["photo 7"])
    with pytest.raises(PromptError, match="160 of them its image's"):
        family.prompt_batch([picture], [long])
    with pytest.raises(PromptError, match="16 of them its image's"):
        family.check_prompt("red " * 600)
    family.check_prompt("what?")
    with pytest.raises(ExampleError, match="photo 8: its target text is empty"):
        family.check_example("what?", " ", (), "photo 8")


def test_places_that_are_not_those_of_the_image_are_refused(
    family: TilesFamily, three: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two rows the right total is no comfort: features are dealt out in order."""
    [picture, _, _] = family.prepare(three)
    original = family.template.prompt

    def moved(turns: Any, images: Any) -> list[int]:
        ids = original(turns, images)
        ids[ids.index(family.image_token_id)] = family.pad_id
        return ids

    monkeypatch.setattr(family.template, "prompt", moved)
    with pytest.raises(ValueError, match="159 places for an image with 160 tokens"):
        family.prompt_batch([picture], ["what?"])


# --- how many tokens an image may have ---


def test_images_are_one_tile_unless_more_is_asked_for(base: LoadedModel, three: list[Image.Image]) -> None:
    small = load_model(str(base.folder), dtype="float32")
    assert [picture.grid for picture in small.family.prepare(three)] == [(), (), ()]
    assert [len(one.values) for one in see(small, three)] == [16] * 3
    assert small.family.chosen == {"image_tokens": 16}
    for asked, tokens, grids in ((16, 16, [()] * 3), (79, 16, [()] * 3), (80, 80, [(2, 2), (1, 2), (2, 1)])):
        family = small.family.with_image_tokens(asked)
        assert [picture.grid for picture in family.prepare(three)] == grids
        assert family.chosen == {"image_tokens": tokens}
    with pytest.raises(UsageError, match=r"image_tokens is 15, and an image of .* has 16 at least"):
        small.family.with_image_tokens(15)
    most = small.family.with_image_tokens(10**6)
    assert most.chosen == {"image_tokens": 37 * 16}, "the tokenizers have tags for six rows and columns"


def test_an_adapter_of_another_number_of_tokens_is_refused(base: LoadedModel, tmp_path: Path) -> None:
    folder = write_random_adapter(base, tmp_path / "mine", TEXT)
    manifest = write_manifest(base, folder)
    assert manifest.base is not None
    assert manifest.base.configuration["image_tokens"] == 160
    there = AttachedAdapters(base)
    assert there.attach("mine", folder, manifest).report.verdict == "exact"
    there.detach_all()
    said = r"image_tokens: 160 there, 16 here \(load it with --image-tokens 160\)"
    with pytest.raises(IncompatibleAdapter, match=said):
        AttachedAdapters(load_model(str(base.folder), dtype="float32")).attach("mine", folder, manifest)


def test_bases_whose_images_have_one_size_take_no_number_of_tokens(mini: LoadedModel) -> None:
    with pytest.raises(UsageError, match="all images of blip2-opt take the same number of tokens"):
        mini.family.with_image_tokens(64)


# --- checkpoints ---


def test_every_linear_layer_has_a_component_and_every_group_its_own(base: LoadedModel) -> None:
    linear = [name for name, module in base.model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(component_of(name) in ("vision", "projection", "lm") for name in linear)
    assert all(component_of(name) for name, _ in base.model.named_parameters())
    groups = ARCHITECTURES[base.family.name].site_groups
    of_group = {"vision": "vision", "projection": "projection"}
    for group in groups:
        sites = Recipe("one", 2, (group,)).sites(base.family.name, linear)
        assert sites, group
        assert {component_of(site) for site in sites} == {of_group.get(group, "lm")}


def test_names_in_the_files_are_those_of_modules(base: LoadedModel) -> None:
    held = {name for name, _ in base.model.named_parameters(remove_duplicate=False)}
    assert set(read_shapes(base.folder)) <= held
    assert set(base.description.linear_shapes) <= {name for name, _ in base.model.named_modules()}
    assert set(base.fingerprint.components) == {"vision", "projection", "lm"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"max_image_size": {"longest_edge": 32}}, "its tiles are 32 pixels wide, the model reads 64"),
        ({}, None),
    ],
)
def test_parts_that_do_not_fit_are_named(base: LoadedModel, family: TilesFamily, change: Any, said: str | None) -> None:
    settings = type(family.processor.image_processor)(**{**family.processor.image_processor.to_dict(), **change})
    processor = dataclasses.replace(family.processor, image_processor=settings)
    if said is None:
        assert type(family)(processor, base.model.config, "it").template.digest == family.template.digest
        return
    with pytest.raises(CheckpointError, match=said):
        type(family)(processor, base.model.config, "it")


def test_a_tokenizer_without_the_tags_is_refused(base: LoadedModel, family: TilesFamily, tmp_path: Path) -> None:
    from recipes.tokenizers import make_chat_tokenizer

    processor = dataclasses.replace(family.processor, tokenizer=make_chat_tokenizer([]))
    with pytest.raises(CheckpointError, match="the tokenizer has no <row_1_col_1>, <row_1_col_2>, <row_1_col_3>"):
        type(family)(processor, base.model.config, "it")


@pytest.mark.parametrize("name", ["smolvlm-256m", "smolvlm-500m", "smolvlm-2.2b"])
def test_sizes_in_the_catalogue_are_those_of_the_published_configurations(name: str) -> None:
    for one in (name, name.replace("smolvlm", "smolvlm2")):
        entry, (config, _) = get_model_entry(one), CHECKPOINTS[one]()
        with torch.device("meta"):
            model = family_class(ARCHITECTURES[entry.family]).model_class(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == entry.parameters
        vision, text = config.vision_config, config.text_config
        assert entry.sizes["vision"] == (vision.hidden_size, vision.num_hidden_layers)
        assert entry.sizes["lm"] == (text.hidden_size, text.num_hidden_layers)
        assert entry.image_tokens == (vision.image_size // vision.patch_size // config.scale_factor) ** 2
