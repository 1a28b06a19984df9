"""``BLIP2CaptioningSystem``: the specification's calls, and what they promise."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorax_vlm import BLIP2CaptioningSystem
from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import (
    AdapterExists,
    AdapterNameError,
    AdapterNotFound,
    DamagedAdapter,
    DataError,
    ImageError,
    RowFailed,
    UnknownModel,
    UntrainedAdapter,
    UsageError,
)
from lorax_vlm.evaluation.results import CaptionReport, ReferenceReport
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import write_untrained_adapter
from lorax_vlm.workshop.intake import keep, made_on
from tests.adapters_for_tests import EVERYWHERE, write_manifest, write_random_adapter
from tests.workspaces_for_tests import shared_workspace

QUICK = TrainConfig(max_steps=4, batch_size=4, learning_rate=5e-3, eval_every=2, patience=None)


@pytest.fixture
def hub_like(mini: LoadedModel, tmp_path: Path) -> Iterator[BLIP2CaptioningSystem]:
    """The miniature as a checkpoint that is not listed: no scenes of its own, the paper's decoding."""
    folder = shutil.copytree(mini.folder, tmp_path / "hub-like")
    with shared_workspace(lambda _: mini, tmp_path / "store", batch_size=8) as workspace:
        workspace.bases = Bases(
            {}, workspace.store, load=lambda entry: dataclasses.replace(mini, entry=entry, folder=folder)
        )
        yield BLIP2CaptioningSystem(str(folder), workspace=workspace)


def few(scenes: list[Scene], style: str = "concise") -> DataSplits:
    examples = [Example(scene.image, scene.caption(style), f"scene {scene.seed}") for scene in scenes]
    return DataSplits(examples[:8], examples[8:], "twelve scenes")


def test_construction_loads_nothing() -> None:
    system = BLIP2CaptioningSystem("Salesforce/blip2-opt-2.7b")
    assert system.entry.key == "blip2_opt"
    assert BLIP2CaptioningSystem().entry == system.entry
    with pytest.raises(UnknownModel):
        BLIP2CaptioningSystem("nothing")


def test_what_can_be_refused_without_the_base_does_not_load_it(tmp_path: Path) -> None:
    system = BLIP2CaptioningSystem("Salesforce/blip2-opt-2.7b", store=tmp_path / "store")
    assert system.list_adapters() == []
    with pytest.raises(AdapterNotFound):
        system.caption_image("gone.png", "nobody")
    with pytest.raises(AdapterNotFound):
        system.remove_adapter("nobody")
    with pytest.raises(AdapterNameError):
        system.create_captioning_adapter("a/b", "detailed")
    with pytest.raises(ValueError, match="Pass data="):
        system.train_adapter("mine", "detailed")
    with pytest.raises(DataError):
        system.train_adapter("mine", "detailed", data=tmp_path)
    assert system.workspace.bases.loaded == []


def test_the_calls_of_the_specification(system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    scenes[0].image.save(path)
    for name, style in (("detailed_captions", "detailed"), ("concise_captions", "concise")):
        stored = system.create_captioning_adapter(name, style, data=few(scenes, style), config=QUICK, progress=False)
        assert stored.manifest.trained
        assert stored.manifest.sites == {"lm": 12}
        assert stored.manifest.rank == 8
    results = system.compare_captioning_styles(str(path))
    assert list(results) == ["base", "concise_captions", "detailed_captions"]
    assert results["base"] == "a red star" == system.caption_image(path)
    assert results["base"].adapter is None
    assert results["detailed_captions"].adapter == "detailed_captions"
    assert all(isinstance(caption, str) for caption in results.values())
    assert json.dumps(results)


def test_the_image_is_encoded_once_for_all_styles(system, mini, scenes, tmp_path: Path, monkeypatch) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        system.load_adapter(write_random_adapter(mini, tmp_path / name, seed=seed))
    seen: list[int] = []
    original = type(mini.family).encode_images

    def spy(self, model, pixel_values, prompts):
        seen.append(len(pixel_values))
        return original(self, model, pixel_values, prompts)

    monkeypatch.setattr(type(mini.family), "encode_images", spy)
    results = system.compare_captioning_styles(scenes[1].image)
    assert seen == [1]
    assert len(results) == 4
    system.load_adapter(write_random_adapter(mini, tmp_path / "sees", EVERYWHERE))
    seen.clear()
    results = system.compare_captioning_styles(scenes[1].image)
    assert seen == [2], "once for the base, once for the adapter that changes the image path"
    monkeypatch.undo()
    for name in ("one", "sees"):
        assert results[name] == system.caption_image(scenes[1].image, name)


def test_images_in_batches_equal_images_alone(system, mini, scenes, tmp_path: Path) -> None:
    system.load_adapter(write_random_adapter(mini, tmp_path / "one", scale=0.6))
    images = [scene.image for scene in scenes]
    for adapter in (None, "one"):
        assert system.caption_images(images, adapter) == [system.caption_image(image, adapter) for image in images]
    assert system.caption_images([]) == []


def test_decoding_can_be_changed_per_call(system, scenes) -> None:
    assert len(system.caption_image(scenes[1].image, max_new_tokens=2).split()) <= 2
    assert system.caption_image(scenes[1].image, max_new_tokens=2).finish == "length"
    with pytest.raises(UsageError, match="Unknown decoding settings: colour"):
        system.caption_image(scenes[1].image, colour=2)
    with pytest.raises(UsageError, match="A list of images is needed"):
        system.caption_images("photo.jpg")
    for size in (0, -1, 2.5):
        with pytest.raises(UsageError, match="batch_size must be a whole number"):
            BLIP2CaptioningSystem("blip2-opt-mini", batch_size=size)


def test_a_sample_with_a_seed_is_the_same_alone_and_in_any_batch(system, scenes) -> None:
    pictures, hot = [scene.image for scene in scenes], {"temperature": 3.0, "seed": 5}
    alone = [system.caption_image(picture, **hot) for picture in pictures]
    assert len(set(alone)) > len(alone) / 2
    assert system.caption_images(pictures, **hot) == alone
    assert system.caption_images(pictures[::-1], **hot) == alone[::-1]
    assert system.caption_image(pictures[0], temperature=3.0) != system.caption_image(pictures[0], temperature=3.0)


def test_images_that_are_sampled_with_one_seed_draw_different_noise(system, scenes) -> None:
    """At a temperature at which noise alone decides, where one noise for all would give all one text."""
    pictures, hot = [scene.image for scene in scenes], {"temperature": 1e6, "seed": 5, "max_new_tokens": 8}
    said = system.caption_images([*pictures, pictures[0].copy()], **hot)
    assert len(set(said)) == len(pictures)
    assert said[-1] == said[0], "the same image, though another object"
    assert said[0] != system.caption_image(pictures[0], **{**hot, "seed": 6})


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
def test_a_tiny_temperature_is_greedy(system, scenes, temperature: float) -> None:
    pictures = [scene.image for scene in scenes[:3]]
    assert system.caption_images(pictures, temperature=temperature, seed=3) == system.caption_images(pictures)


def test_a_bad_image_fails_alone(system, scenes) -> None:
    images = [scenes[0].image, "gone.png", b"no image", scenes[1].image]
    said = system.caption_images(images, return_errors=True)
    assert [type(text).__name__ for text in said] == ["Caption", "ImageError", "ImageError", "Caption"]
    assert [said[0], said[3]] == system.caption_images([scenes[0].image, scenes[1].image])
    with pytest.raises(ImageError, match=r"gone\.png"):
        system.caption_images(images)


def test_a_row_that_fails_unexpectedly_leaves_the_others_alone(system, scenes, monkeypatch) -> None:
    pictures = [scene.image for scene in scenes[:4]]
    expected = system.caption_images(pictures)
    original = type(system.base.family).prepare

    def fails_on_the_third(self, images):
        if any(np.array_equal(image, pictures[2]) for image in images):
            raise ZeroDivisionError("of a library")
        return original(self, images)

    monkeypatch.setattr(type(system.base.family), "prepare", fails_on_the_third)
    said = system.caption_images(pictures, return_errors=True)
    assert isinstance(said[2], RowFailed)
    assert isinstance(said[2].__cause__, ZeroDivisionError)
    assert [text for row, text in enumerate(said) if row != 2] == [t for row, t in enumerate(expected) if row != 2]
    with pytest.raises(ZeroDivisionError):
        system.caption_images(pictures)


def test_unknown_adapters_and_images(system, scenes) -> None:
    with pytest.raises(AdapterNotFound, match="lorax-vlm adapters list"):
        system.caption_image(scenes[0].image, "nobody")
    with pytest.raises(ImageError, match=r"gone\.png"):
        system.caption_image("gone.png")


def test_taken_names(system, scenes) -> None:
    options = {"data": few(scenes), "config": QUICK, "progress": False}
    system.create_captioning_adapter("mine", "concise", **options)
    with pytest.raises(AdapterExists):
        system.create_captioning_adapter("mine", "concise", "light", **options)
    with pytest.raises(AdapterExists):
        system.train_adapter("mine", "concise", **options)
    assert system.create_captioning_adapter("mine", "concise", replace=True, **options).version == 2


def test_the_same_call_again_uses_what_is_there(system, scenes) -> None:
    options = {"data": few(scenes), "config": QUICK, "progress": False}
    first = system.create_captioning_adapter("mine", "concise", **options)
    assert system.create_captioning_adapter("mine", "concise", **options) == first
    for changed in ({"data": few(scenes[:10])}, {"config": dataclasses.replace(QUICK, seed=7)}):
        with pytest.raises(AdapterExists):
            system.create_captioning_adapter("mine", "concise", **{**options, **changed})
    with pytest.raises(AdapterExists):
        system.create_captioning_adapter("mine", "detailed", **options)


def test_another_bases_adapter_is_never_replaced(system, mini, scenes, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "theirs")
    theirs = write_manifest(mini, folder)
    assert theirs.base is not None
    theirs = dataclasses.replace(theirs, base=dataclasses.replace(theirs.base, name="Salesforce/blip2-opt-2.7b"))
    kept = system.store.add("mine", folder, theirs)
    with pytest.raises(AdapterExists, match=r"for another base, Salesforce/blip2-opt-2\.7b"):
        system.train_adapter("mine", "concise", data=few(scenes), config=QUICK, replace=True, progress=False)
    assert system.store.get("mine") == kept
    assert system.list_adapters() == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_base_of_the_same_name_and_other_weights_is_another_base(
    system, mini, scenes, tmp_path: Path, replace: bool
) -> None:
    """Two folders called ``checkpoint``, say: neither sees, gets or replaces the other's adapters."""
    folder = write_random_adapter(mini, tmp_path / "theirs")
    theirs = write_manifest(mini, folder)
    assert theirs.base is not None
    other = {component: "0" * 32 for component in theirs.base.components}
    assert system.base.fingerprint.components == theirs.base.components  # only then its weights are known
    kept = system.store.add(
        "mine", folder, dataclasses.replace(theirs, base=dataclasses.replace(theirs.base, components=other))
    )
    assert system.list_adapters() == []
    with pytest.raises(AdapterExists, match="for another base, blip2-opt-mini of other weights"):
        system.create_captioning_adapter(
            "mine", "concise", data=few(scenes), config=QUICK, replace=replace, progress=False
        )
    assert system.store.get("mine") == kept


def test_checkpoints_stay_until_the_adapter_is_stored(system, scenes, monkeypatch) -> None:
    options = {"data": few(scenes), "config": QUICK, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(type(system.store), "add_all", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            system.train_adapter("mine", "concise", **options)
    assert list(system.workspace.workshop(system.model).run_dir("mine").glob("checkpoint-*"))
    assert system.train_adapter("mine", "concise", resume=True, **options).manifest.training["steps"] == 4
    assert not list(system.workspace.workshop(system.model).run_dir("mine").glob("checkpoint-*"))


def test_a_retrained_adapter_is_used_at_once(system, scenes) -> None:
    images = [scene.image for scene in scenes]
    config = dataclasses.replace(QUICK, max_steps=40, eval_every=20)
    system.create_captioning_adapter("mine", "concise", data=few(scenes), config=config, progress=False)
    first = system.caption_images(images, "mine")
    system.train_adapter("mine", "detailed", data=few(scenes, "detailed"), config=config, replace=True, progress=False)
    assert system.caption_images(images, "mine") != first


def test_save_and_load_elsewhere(system, mini, scenes, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, max_steps=20)
    system.create_captioning_adapter("mine", "concise", data=few(scenes), config=config, progress=False)
    caption = system.caption_image(scenes[0].image, "mine")
    folder = system.save_adapter("mine", tmp_path / "shared" / "mine")
    system.remove_adapter("mine")
    assert system.list_adapters() == []
    with pytest.raises(AdapterNotFound):
        system.caption_image(scenes[0].image, "mine")
    loaded = system.load_adapter(folder, "theirs")
    assert loaded.manifest.skill.name == "concise"
    assert (loaded.name, loaded.manifest.name) == ("theirs", "mine"), "its record stays as it was"
    assert system.caption_image(scenes[0].image, "theirs") == caption


def test_damaged_and_empty_directories_are_not_stored(system, mini, tmp_path: Path) -> None:
    folder = write_random_adapter(mini, tmp_path / "hurt")
    (folder / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DamagedAdapter, match="hurt"):
        system.load_adapter(folder)
    with pytest.raises(DamagedAdapter, match="does not exist"):
        system.load_adapter(tmp_path / "nothing")
    zero = write_random_adapter(mini, tmp_path / "zero", scale=0.0)
    with pytest.raises(UntrainedAdapter):
        system.load_adapter(zero)
    assert system.store.names() == []


# --- a base without scenes of its own --------------------------------------------------------------------------------


def test_without_data_it_is_untrained_and_says_so(hub_like, scenes, caplog) -> None:
    system = hub_like
    stored = system.create_captioning_adapter("later", "detailed")
    assert not stored.manifest.trained
    assert "untrained and changes nothing yet" in caplog.text
    assert system.create_captioning_adapter("later", "detailed") == stored
    results = system.compare_captioning_styles(scenes[0].image, ["later"], min_new_tokens=0, num_beams=1)
    assert results["base"] == results["later"]
    trained = system.train_adapter("later", data=few(scenes), config=QUICK, progress=False)
    assert trained.manifest.trained
    assert trained.manifest.skill.name == "detailed"
    assert trained.manifest.prompt == system.base.entry.caption_prompt
    assert not read_adapter_files(trained.folder, "later").changes_nothing


def test_training_and_figures_need_data(hub_like) -> None:
    system = hub_like
    with pytest.raises(ValueError, match=r"Pass data=FOLDER"):
        system.train_adapter("mine", "detailed")
    with pytest.raises(ValueError, match=r"Pass data=FOLDER"):
        system.evaluate_adapter()


def test_styles_have_their_own_decoding(hub_like) -> None:
    system = hub_like
    system.create_captioning_adapter("c", "concise")
    with system.workspace.bases.use(system.model) as engine:
        alone, concise = (
            engine.ask(manifest, question=False).settings for manifest in (None, system.store.get("c").manifest)
        )
    assert alone == system.entry.caption_settings
    assert (concise.max_new_tokens, concise.min_new_tokens) == (20, 0)


# --- a folder of captions --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(scenes: list[Scene], tmp_path: Path) -> Path:
    target = tmp_path / "photos"
    target.mkdir()
    rows = []
    for scene in scenes:
        scene.image.save(target / f"{scene.seed}.png")
        rows.append(json.dumps({"file_name": f"{scene.seed}.png", "caption": scene.caption("plain")}))
    (target / "metadata.jsonl").write_text("\n".join(rows))
    return target


def test_train_and_evaluate_on_a_folder(system, folder: Path) -> None:
    stored = system.train_adapter("mine", "plain", data=folder, config=QUICK, progress=False)
    assert stored.manifest.training["data"].startswith("photos: 11 training")
    assert str(folder.parent) not in stored.manifest.to_json()
    base, mine = system.evaluate_adapters(["mine"], data=folder)
    assert isinstance(base, ReferenceReport)
    assert isinstance(mine, ReferenceReport)
    held_out = system.training_data("", folder).validation
    assert base.count == len(held_out)
    assert base.exact_match == sum(system.caption_image(e.image) == e.target for e in held_out) / len(held_out)
    assert base.loss < 0.5, "the base captions plainly by itself"
    assert mine.protocol == base.protocol


def test_losses_are_those_of_the_adapters_own_prompt(system, folder: Path, tmp_path: Path) -> None:
    """Two that change nothing: one asked as the base is has the base's loss, one asked otherwise another."""
    untrained = write_untrained_adapter(system.base, Recipe("t", 2, ("lm-qv",)), tmp_path / "untrained")
    for name, prompt in (("same", system.entry.caption_prompt), ("other", "on a foggy morning,")):
        manifest = Manifest(name=name, skill=caption(""), base=None, recipe="t", prompt=prompt, trained=False)
        with system.workspace.bases.use(system.model) as engine:
            keep(engine, untrained, made_on(engine, manifest))
    base, same, other = (system.evaluate_adapter(name, data=folder).loss for name in (None, "same", "other"))
    assert same == pytest.approx(base, rel=1e-5)
    assert other > 2 * base


def test_malformed_rows_stop_training_before_it_starts(system, folder: Path) -> None:
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\nnonsense\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl:13: not JSON"):
        system.train_adapter("mine", "plain", data=folder, config=QUICK, progress=False)
    stored = system.train_adapter("mine", "plain", data=folder, config=QUICK, progress=False, skip_bad_rows=True)
    assert "1 malformed rows left out" in stored.manifest.training["data"]


# --- figures ----------------------------------------------------------------------------------------------------


def test_the_base_captions_plainly_and_in_no_style(system) -> None:
    reports = {style: system.evaluate_adapter(None, style, count=60) for style in ("plain", "detailed", "creative")}
    assert all(isinstance(report, CaptionReport) for report in reports.values())
    assert reports["plain"].in_style_and_true >= 0.9
    assert reports["detailed"].in_style == reports["creative"].in_style == 0
    assert reports["detailed"].true == reports["plain"].true
    assert reports["plain"].protocol["data"] == "scenes 2000000000 to 2000000059"


def test_reports_name_their_failures(system, mini, tmp_path: Path) -> None:
    system.load_adapter(write_manifest_on(mini, write_random_adapter(mini, tmp_path / "noise", scale=2.0)))
    report = system.evaluate_adapter("noise", count=10)
    assert isinstance(report, CaptionReport)
    assert report.style == "concise"
    assert report.in_style_and_true < 0.5
    assert set(report.failures[0]) == {"scene", "caption", "reference", "in_style", "true"}
    with pytest.raises(ValueError, match="Unknown caption style"):
        system.evaluate_adapter("noise", "baroque", count=2)


def write_manifest_on(mini: LoadedModel, folder: Path) -> Path:
    write_manifest(mini, folder)
    return folder


def test_any_kind_of_image_is_captioned_alike(system, scenes, tmp_path: Path) -> None:
    import numpy as np

    image = scenes[2].image
    image.save(tmp_path / "it.png")
    sources = [image, np.asarray(image), tmp_path / "it.png", (tmp_path / "it.png").read_bytes()]
    assert len(set(system.caption_images(sources))) == 1
    assert system.caption_image(Image.new("L", (30, 50), 128)) is not None


def test_training_leaves_the_base_as_it_was(system, scenes) -> None:
    before = {name: tensor.clone() for name, tensor in system.base.model.state_dict().items()}
    system.create_captioning_adapter("mine", "concise", data=few(scenes), config=QUICK, progress=False)
    system.workspace.bases.clear()
    after = system.base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_styles_trained_together_are_stored_one_by_one(system, scenes, tmp_path: Path) -> None:
    styles = {"long": "detailed", "short": "concise"}
    data = {name: few(scenes, style) for name, style in styles.items()}
    stored = system.train_adapters(styles, data=data, config=QUICK, progress=False)
    assert [adapter.name for adapter in stored] == ["long", "short"]
    for adapter in stored:
        assert adapter.manifest.trained
        assert adapter.manifest.skill.name == styles[adapter.name]
        assert system.training_curve(adapter.name).is_file()
    assert system.caption_image(scenes[0].image, "long").adapter == "long"
    system.create_captioning_adapter("free", "plain", data=few(scenes, "plain"), config=QUICK, progress=False)
    with pytest.raises(AdapterExists):
        system.train_adapters({"new": "concise", "short": "concise"}, data=data["short"], config=QUICK, progress=False)
    assert "new" not in system.store
