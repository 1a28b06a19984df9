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
from lorax_vlm.training.config import TrainConfig

FEW = ("--steps", 2, "--batch-size", 2, "--eval-every", 2)
ONE = ("train", "mine", "--style", "concise", *FEW)
TASK = ("train", "counts", "--task", "counting", "--model", "vilt-mini", "--recipe", "light", *FEW)


@pytest.fixture
def killed_after_storing(run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a command that ends when its adapters are stored and before anything is cleaned up."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def call(*words: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("lorax_vlm.workshop.discard_run", killed)
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
    file.write_text("brief: {style: concise}\nlong: {style: detailed}\n", encoding="utf-8")
    words = ("train", "--adapters", file, *FEW)
    killed_after_storing(*words)
    found = json.loads(run(*words, "--resume", "--json"))["adapters"]
    assert [(record["name"], record["version"]) for record in found] == [("brief", 1), ("long", 1)]


def damage(store: AdapterStore, name: str) -> None:
    manifest = store.get(name).folder / MANIFEST_FILE
    manifest.chmod(0o644)
    manifest.write_text("nonsense")


def test_a_damaged_adapter_is_replaced(run) -> None:
    run(*ONE)
    damage(AdapterStore(), "mine")
    assert "DamagedAdapter" in run(*ONE, code=1)
    assert "DamagedAdapter" in run(*ONE, "--resume", code=1)
    assert json.loads(run(*ONE, "--replace", "--json"))["version"] == 2


def test_creating_replaces_a_damaged_adapter_too(system: BLIP2CaptioningSystem, scenes: list[Scene]) -> None:
    examples = [Example(scene.image, scene.caption("concise"), f"scene {scene.seed}") for scene in scenes]
    options = {
        "data": DataSplits(examples[:8], examples[8:], "twelve scenes"),
        "config": TrainConfig(max_steps=2, batch_size=2, eval_every=2),
        "progress": False,
    }
    system.create_captioning_adapter("mine", "concise", **options)
    damage(system.store, "mine")
    with pytest.raises(DamagedAdapter):
        system.create_captioning_adapter("mine", "concise", **options)
    assert system.create_captioning_adapter("mine", "concise", replace=True, **options).version == 2
    damage(system.store, "mine")
    assert system.train_adapter("mine", "concise", replace=True, **options).version == 3
