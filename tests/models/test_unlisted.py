"""Checkpoints that the catalogue does not list are asked like their family, before they are loaded, too."""

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import UsageError
from lorax_vlm.models.catalog import CATALOG, MINIS_DIR, CatalogEntry, get_model_entry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.vqa import VQASystem

MINIATURES = [entry.name for entry in CATALOG if entry.miniature]


def defaults(entry: CatalogEntry) -> tuple[object, ...]:
    return (
        *(entry.family, entry.captions, entry.caption_prompt, entry.question_template),
        *(entry.caption_settings, entry.answer_settings),
    )


def of_its_family(name: str) -> tuple[object, ...]:
    family = get_model_entry(name).family
    return defaults(next(entry for entry in CATALOG if entry.family == family and not entry.miniature))


def configured(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(MINIS_DIR / name / "config.json", folder)
    return folder


@pytest.mark.parametrize("name", MINIATURES)
def test_a_folder_is_asked_like_its_family(name: str, tmp_path: Path) -> None:
    folder = configured(name, tmp_path / "mine")
    assert defaults(get_model_entry(folder)) == of_its_family(name)
    assert get_model_entry(folder).name == "mine"


@pytest.mark.parametrize("name", MINIATURES)
def test_so_is_what_the_cache_of_the_hub_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--somebody--thing", "0" * 40
    configured(name, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert defaults(get_model_entry("somebody/thing")) == of_its_family(name)
    assert not get_model_entry("somebody/other").family


@pytest.mark.parametrize(
    "text",
    [None, "", "nonsense", "[]", "null", "{}", '{"model_type": ["vilt"]}', "[" * 50_000, '{"model_type": "gpt2"}'],
)
def test_what_says_nothing_of_its_family_has_none(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert get_model_entry(tmp_path).family == ""


def test_names_that_no_hub_can_have_are_names_all_the_same() -> None:
    assert get_model_entry("some body/..thing--").family == ""


def test_a_folder_of_vilt_answers_and_writes_no_captions(scenes: list[Scene], tmp_path: Path) -> None:
    folder = configured("vilt-mini", tmp_path / "classifier")
    with pytest.raises(UsageError, match="cannot write captions"):
        BLIP2CaptioningSystem(str(folder))
    with pytest.raises(UsageError, match="cannot do 'captioning'"):
        MultiModalLoRAExchange(store=tmp_path / "store").create_adapter(str(folder), "a", "captioning")
    examples = [answered(s.image, "What is it?", ["a scene"], str(s.seed)) for s in scenes]
    order = VQASystem(store=tmp_path / "store").order(
        str(folder), "mine", "t", data=DataSplits(examples, examples, "twelve")
    )
    assert order.kind.ask.template == "{question}"
    assert {example.prompt for example in order.splits.train} == {"What is it?"}


def test_what_only_loading_tells_is_loaded_before_it_is_trained(
    load_shared: Callable[[str], LoadedModel], scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompt of a checkpoint that was never on this machine is the one that its adapter is trained with."""
    base, source = load_shared("instructblip-mini"), "somebody/thing"
    monkeypatch.setattr("lorax_vlm.runtime.bases.load_model", lambda *_, **__: base)
    monkeypatch.setattr("lorax_vlm.runtime.bases.Bases.needed_bytes", lambda *_: None)
    captions = [Example(scene.image, scene.caption("plain"), str(scene.seed)) for scene in scenes]
    order = BLIP2CaptioningSystem(source).order("mine", "plain", data=DataSplits(captions, captions, "twelve"))
    assert order.kind.ask.template == "A short image caption."
    assert {example.prompt for example in order.splits.train} == {order.kind.ask.template}
    assert order.kind.ask.settings == base.entry.caption_settings
    questions = [answered(s.image, "What is it?", ["a scene"], str(s.seed)) for s in scenes]
    order = VQASystem().order(source, "mine", "t", data=DataSplits(questions, questions, "twelve"))
    assert order.kind.ask.template == "Question: {question} Short Answer:"
    assert {example.prompt for example in order.splits.train} == {"Question: What is it? Short Answer:"}
