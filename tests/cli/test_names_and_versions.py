"""Which adapter, and which version of it, is meant wherever one is named."""

import dataclasses
import json
from pathlib import Path

import pytest

from lorax_vlm.adapters.compare import compare_adapters
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.scenes import Scene
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import EXCHANGE_TASKS, answer, caption
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workspace import Workspace
from tests.adapters_for_tests import write_manifest, write_random_adapter

ANSWERS = {"skill": answer("counting")}


def add(base: LoadedModel, tmp_path: Path, name: str, seed: int = 0, scale: float = 0.6, **facts: object) -> None:
    """A random adapter as a new version of a name in the default store."""
    folder = write_random_adapter(base, tmp_path / "made" / f"{name}-{seed}", seed=seed, scale=scale)
    AdapterStore().add(name, folder, write_manifest(base, folder, **facts), replace=True)


@pytest.fixture
def photos(mini: LoadedModel, scenes: list[Scene], tmp_path: Path) -> Path:
    """``mine`` in two versions, and images with what the first says about them."""
    for seed in (0, 1):
        add(mini, tmp_path, "mine", seed)
    system = BLIP2CaptioningSystem("blip2-opt-mini")
    first, second = (system.caption_images([s.image for s in scenes[:4]], f"mine@{n}") for n in (1, 2))
    assert all(map(str.strip, first))  # type: ignore[arg-type]
    assert first != second
    folder = tmp_path / "photos"
    folder.mkdir()
    for scene in scenes[:4]:
        scene.image.save(folder / f"{scene.seed}.png")
    rows = [{"file_name": f"{s.seed}.png", "text": said} for s, said in zip(scenes[:4], first, strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_version_that_is_asked_for_is_measured(run, photos: Path) -> None:
    asked = ("mine@1", "mine", "mine@2")
    found = json.loads(run("evaluate", *asked, "--data", photos, "--no-base", "--json"))["reports"]
    assert [report["adapter"] for report in found] == [*asked]
    first, current, second = (report["exact_match"] for report in found)
    assert (first, current) == (1, second)
    assert second < 1


@pytest.mark.parametrize("names", [("skill", "skill"), ("vilt-mini.skill", "skill")])
def test_an_adapter_named_twice_is_measured_once(run, load_shared, tmp_path: Path, names: tuple[str, str]) -> None:
    add(load_shared("vilt-mini"), tmp_path, "vilt-mini.skill", **ANSWERS, prompt="{question}")
    found = json.loads(run("evaluate", *names, "--model", "vilt-mini", "--count", 4, "--no-base", "--json"))
    assert [report["adapter"] for report in found["reports"]] == [names[0]]


def test_every_adapter_is_measured_once(load_shared, scenes: list[Scene], tmp_path: Path) -> None:
    """Also one that is called like another one without the name of its base, and those of the exchange's tasks."""
    vilt = load_shared("vilt-mini")
    for seed, name in enumerate(("skill", "vilt-mini.skill", "vilt-mini.other")):
        add(vilt, tmp_path, name, seed, 1.0, **ANSWERS, prompt="{question}")
    for task in ("general", "complex_reasoning"):
        add(vilt, tmp_path, f"vilt-mini.{task}", skill=EXCHANGE_TASKS[task], prompt="{question}")
    system = VQASystem(workspace=Workspace("mini", load=lambda _: vilt))
    questions = ["How many shapes are there?", "What color is the background?"] * 6
    images = [scene.image for scene in scenes]
    rows = system.benchmark_models(images, questions, answers=["2"] * 12, models=["vilt"], alone=1)
    names = [row.adapter for row in rows]
    assert names == [None, "skill", "complex_reasoning", "general", "other", "vilt-mini.skill"]
    said = [system.answer_questions(images, questions, "vilt", name) for name in ("skill", "vilt-mini.skill")]
    assert said[0] != said[1]
    shares = [row.seen.adapter for row in rows if row.seen is not None]
    assert sorted(shares) == AdapterStore().names()
    system.workspace.bases.clear()


def test_captioning_reads_an_adapter_once_however_many_images(
    system: BLIP2CaptioningSystem, mini: LoadedModel, scenes: list[Scene], tmp_path: Path, monkeypatch
) -> None:
    folder = write_random_adapter(mini, tmp_path / "mine")
    write_manifest(mini, folder)
    system.load_adapter(folder)
    system.caption_image(scenes[0].image, "mine")
    read: list[str] = []
    get = AdapterStore.get
    monkeypatch.setattr(AdapterStore, "get", lambda self, name: read.append(name) or get(self, name))
    counts = []
    for count in (2, 8):
        read.clear()
        system.caption_images([scene.image for scene in scenes[:count]], "mine")
        counts.append(len(read))
    assert counts[0] == counts[1]


def test_two_adapters_are_compared_as_they_were_read(mini: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    """A version that comes while they are read is in no part of the comparison."""
    add(mini, tmp_path, "one", 1, skill=caption("concise"))
    add(mini, tmp_path, "two", 2, skill=caption("plain"))
    store = AdapterStore()
    read = store.read_bytes

    def replaced_meanwhile(name: str):
        found = read(name)
        add(mini, tmp_path, name, 3, skill=caption("baroque"))
        return found

    monkeypatch.setattr(store, "read_bytes", replaced_meanwhile)
    facts = compare_adapters(store, "one", "two").facts
    assert ("skill.name", "concise", "plain") in facts


def test_an_adapter_is_shown_as_it_was_read(run, mini: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    add(mini, tmp_path, "one", 1, skill=caption("concise"))
    first = AdapterStore().get("one")
    read = AdapterStore.get

    def replaced_afterwards(self: AdapterStore, name: str):
        found = read(self, name)
        monkeypatch.setattr(AdapterStore, "get", read)
        folder = write_random_adapter(mini, tmp_path / "larger", "heavy")
        AdapterStore().add("one", folder, write_manifest(mini, folder, skill=caption("baroque")), replace=True)
        return found

    monkeypatch.setattr(AdapterStore, "get", replaced_afterwards)
    shown = json.loads(run("adapters", "show", "one", "--json"))
    files = AdapterStore().read(f"one@{shown['version']}")[1]
    assert shown["size_bytes"] == files.size_bytes
    assert first.version == 1


def test_a_base_is_searched_for_by_any_of_its_names(
    run, stored: AdapterStore, mini: LoadedModel, tmp_path: Path
) -> None:
    hub = dataclasses.replace(mini, entry=get_model_entry("blip2_opt"))
    folder = write_random_adapter(hub, tmp_path / "made" / "hub")
    stored.add("hub", folder, write_manifest(hub, folder))
    found = [a.name for a in stored.search(base="blip2-opt-mini")]
    assert found == ["one", "two"]
    for name in ("blip2_opt", "blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b"):
        assert "hub" in run("adapters", "search", "--base", name), name


def test_an_import_takes_the_base_that_the_folder_names(run, load_shared, tmp_path: Path) -> None:
    flan = load_shared("blip2-flan-mini")
    folder = write_random_adapter(flan, tmp_path / "made" / "for-flan")
    write_manifest(flan, folder)
    assert "Stored for-flan" in run("adapters", "import", folder)
    assert AdapterStore().get("for-flan").manifest.base.name == "blip2-flan-mini"
