"""Training again under a name that is taken: by what an interrupted run stored, or by what cannot be read any more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.config import TrainConfig
from tests.adapters_for_tests import write_manifest, write_random_adapter

FEW = ("--steps", 1, "--batch-size", 16, "--eval-every", 1)
ONE = ("train", "mine", "--style", "concise", "--data", "captions", *FEW)
TASK = ("train", "counts", "--task", "t", "--data", "questions", "--model", "vilt-mini", "--recipe", "light", *FEW)


@pytest.fixture(autouse=True)
def data(scenes: list[Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders with captions and with questions, where the commands run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("captions", "questions"):
        Path(folder).mkdir()
        rows = []
        for scene in scenes:
            scene.image.save(Path(folder) / f"{scene.seed}.png")
            said = {"text": scene.caption("concise")}
            asked = {"question": "What color is the background?", "answer": scene.background}
            rows.append({"file_name": f"{scene.seed}.png", **(said if folder == "captions" else asked)})
        (Path(folder) / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def killed_after_storing(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a command that ends when its adapters are stored and before anything is cleaned up."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def call(*words: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("lorax_vlm.workshop.making.discard_run", killed)
            run(*words, code=130)

    return call


@pytest.mark.parametrize(("words", "name"), [(ONE, "mine"), (TASK, "vilt-mini.counts")], ids=["style", "task"])
def test_what_was_stored_before_the_kill_is_finished(run, killed_after_storing, words, name: str) -> None:
    killed_after_storing(*words)
    kept = AdapterStore().get(name)
    assert json.loads(run(*words, "--resume", "--json"))["version"] == 1
    assert AdapterStore().get(name) == kept
    assert "AdapterExists" in run(*words, code=1)
    other = [*words, "--seed", 5]
    assert "AdapterExists" in run(*other, "--resume", code=1), "another adapter than the one that is stored"


def test_so_are_several_that_were_trained_together(run, killed_after_storing, tmp_path: Path) -> None:
    file = tmp_path / "styles.yaml"
    file.write_text("first: {task: t, data: questions}\nsecond: {task: u, data: questions}\n", encoding="utf-8")
    words = ("train", "--adapters", file, "--model", "vilt-mini", "--recipe", "light", *FEW)
    killed_after_storing(*words)
    found = json.loads(run(*words, "--resume", "--json"))["adapters"]
    assert [(record["name"], record["version"]) for record in found] == [
        ("vilt-mini.first", 1),
        ("vilt-mini.second", 1),
    ]


def damage(store: AdapterStore, name: str) -> None:
    manifest = store.get(name).folder / MANIFEST_FILE
    manifest.chmod(0o644)
    manifest.write_text("nonsense")


def test_a_damaged_adapter_is_replaced(run) -> None:
    run(*TASK)
    damage(AdapterStore(), "vilt-mini.counts")
    assert "DamagedAdapter" in run(*TASK, code=1)
    assert "DamagedAdapter" in run(*TASK, "--resume", code=1)
    assert json.loads(run(*TASK, "--replace", "--json"))["version"] == 2


def test_creating_replaces_a_damaged_adapter_too(
    system: BLIP2CaptioningSystem, mini: LoadedModel, scenes: list[Scene], tmp_path: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "mine")
    system.store.add("mine", folder, write_manifest(mini, folder))
    examples = [Example(scene.image, scene.caption("concise"), f"scene {scene.seed}") for scene in scenes]
    options = {
        "data": DataSplits(examples[:8], examples[8:], "twelve scenes"),
        "config": TrainConfig(max_steps=1, batch_size=2, eval_every=1),
        "progress": False,
    }
    damage(system.store, "mine")
    with pytest.raises(DamagedAdapter):
        system.create_captioning_adapter("mine", "concise", **options)
    assert system.create_captioning_adapter("mine", "concise", replace=True, **options).version == 2
