"""ViLT adapters that bring answers of their own: LoRA, head and label map as one unit."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import ViltForQuestionAnswering

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.manifest import MANIFEST_FILE, read_manifest
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import DamagedAdapter, IncompatibleAdapter
from lorax_vlm.models.families.vilt import ViltFamily
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem
from tests.adapters_for_tests import edit_config
from tests.workspaces_for_tests import shared_workspace

QUESTION = "What kind of picture is this?"
FEW = TrainConfig(max_steps=40, batch_size=4, eval_every=20, learning_rate=1e-2, patience=None)
RECIPE = Recipe("small", rank=2, groups=("lm-qv",))


@pytest.fixture
def vilt(load_shared: Callable[[str], LoadedModel]) -> LoadedModel:
    return load_shared("vilt-mini")


@pytest.fixture
def system(vilt: LoadedModel, tmp_path: Path) -> Iterator[VQASystem]:
    with shared_workspace(lambda _: vilt, tmp_path / "store", batch_size=8) as workspace:
        yield VQASystem(workspace=workspace)


@pytest.fixture(scope="module")
def trained(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an adapter that only ever says drawing or painting, which the base cannot."""
    examples = [
        answered(scene.image, QUESTION, ["drawing" if index % 3 else "painting"], f"scene {scene.seed}")
        for index, scene in enumerate(scenes)
    ]
    splits = DataSplits(examples[:9], examples[9:], "pictures")
    root = tmp_path_factory.mktemp("trained") / "store"
    system = VQASystem("mini", store=root, batch_size=8)
    system.train_adapter("vilt", "kinds", "kinds", data=splits, complexity=RECIPE, config=FEW, progress=False)
    return root


@pytest.fixture
def stored(system: VQASystem, trained: Path) -> StoredAdapter:
    """It, in the store of the system."""
    shutil.copytree(trained, system.store.root, dirs_exist_ok=True)
    return system.workspace.stored("kinds", "vilt")


def test_new_answers_can_be_given_and_old_ones_stay(
    system: VQASystem, stored: StoredAdapter, vilt: LoadedModel, scenes: list[Scene]
) -> None:
    assert isinstance(vilt.family, ViltFamily)
    images = [scene.image for scene in scenes]
    before = system.answer_questions(images, [QUESTION] * 12, "vilt")
    assert {str(a) for a in system.answer_questions(images, [QUESTION] * 12, "vilt", "kinds")} <= {
        "drawing",
        "painting",
    }
    assert stored.manifest.labels[:-2] == vilt.family.labels
    assert set(stored.manifest.labels[-2:]) == {"drawing", "painting"}
    assert stored.manifest.training["label_coverage"] == 1.0
    assert system.answer_questions(images, [QUESTION] * 12, "vilt") == before
    assert vilt.model.classifier[-1].out_features == len(vilt.family.labels)


def asked(vilt: LoadedModel, scenes: list[Scene]) -> Any:
    """What the model takes of the question about each scene."""
    family: Any = vilt.family
    return {
        **family.prompt_batch([QUESTION] * len(scenes)),
        **family.pixel_batch(family.prepare([scene.image for scene in scenes])),
    }


@pytest.mark.filterwarnings("ignore")
def test_the_directory_is_pefts_own(stored: StoredAdapter, vilt: LoadedModel, scenes: list[Scene]) -> None:
    """Plain PEFT on a ViLT whose last layer was made as large gives the same logits."""
    attached = AttachedAdapters(vilt)
    attached.attach("kinds", stored.folder)
    batch = asked(vilt, scenes)
    with torch.no_grad(), attached.using("kinds") as model:
        ours = model(**batch).logits
    attached.detach_all()
    plain = ViltForQuestionAnswering.from_pretrained(vilt.folder).eval()
    plain.classifier[-1] = torch.nn.Linear(plain.classifier[-1].in_features, len(stored.manifest.labels))
    peft_model = PeftModel.from_pretrained(plain, str(stored.folder)).eval()
    with torch.no_grad():
        assert torch.allclose(peft_model(**batch).logits, ours, atol=1e-5)
    assert ours.shape[1] == len(stored.manifest.labels)


def test_an_adapter_without_new_answers_has_no_head(system: VQASystem, scenes: list[Scene]) -> None:
    examples = [answered(s.image, "Is it?", ["yes", "yes", "no"], f"scene {s.seed}") for s in scenes]
    splits = DataSplits(examples[:9], examples[9:], "pictures")
    stored = system.train_adapter("vilt", "same", "x", data=splits, complexity=RECIPE, config=FEW, progress=False)
    assert stored.manifest.labels == ()
    assert read_adapter_files(stored.folder, "same").head == {}


def test_heads_of_several_adapters_do_not_mix(
    system: VQASystem, stored: StoredAdapter, vilt: LoadedModel, scenes: list[Scene]
) -> None:
    examples = [answered(s.image, QUESTION, ["sketch"], f"scene {s.seed}") for s in scenes]
    splits = DataSplits(examples[:9], examples[9:], "pictures")
    system.train_adapter("vilt", "sketches", "x", data=splits, complexity=RECIPE, config=FEW, progress=False)
    image = [scenes[0].image]
    for _ in range(2):
        assert system.answer_questions(image, [QUESTION], "vilt", "sketches") == ["sketch"]
        assert system.answer_questions(image, [QUESTION], "vilt", "kinds")[0] in ("drawing", "painting")
        assert system.answer_questions(image, [QUESTION], "vilt")[0] in vilt.family.labels  # type: ignore[attr-defined]


def test_an_exception_in_a_block_gives_the_base_its_head_back(
    stored: StoredAdapter, vilt: LoadedModel, scenes: list[Scene]
) -> None:
    attached, head = AttachedAdapters(vilt), vilt.model.classifier
    batch = asked(vilt, scenes[:1])
    with torch.no_grad():
        before = vilt.model(**batch).logits
    attached.attach("kinds", stored.folder)

    def fail() -> None:
        with attached.using("kinds"):
            assert vilt.model(**batch).logits.shape[1] == before.shape[1] + 2
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    with torch.no_grad():
        after = vilt.model(**batch).logits
    assert torch.allclose(after, before, atol=1e-5)  # ViLT shuffles its patches
    attached.detach_all()
    assert vilt.model.classifier is head


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    change(weights)
    save_file(weights, folder / WEIGHTS_FILE)


def unsealed_copy(stored: StoredAdapter, folder: Path) -> Path:
    """A copy whose manifest does not name its files, so that what is changed in them is looked at."""
    shutil.copytree(stored.folder, folder)
    (folder / MANIFEST_FILE).write_text(dataclasses.replace(stored.manifest, files={}).to_json())
    return folder


def set_labels(folder: Path, labels: tuple[str, ...]) -> None:
    manifest = dataclasses.replace(read_manifest(folder, "x"), labels=labels)
    (folder / MANIFEST_FILE).write_text(manifest.to_json())


LAST = "base_model.model.classifier.3.weight"
FIRST = "base_model.model.classifier.0.weight"


@pytest.mark.parametrize(
    ("damage", "error", "reason"),
    [
        (lambda f: (f / MANIFEST_FILE).unlink(), IncompatibleAdapter, "its manifest names no answers for them"),
        (lambda f: set_labels(f, ("a", "b")), IncompatibleAdapter, "31 outputs, its manifest names 2 answers"),
        (lambda f: rewrite(f, lambda w: w.pop(FIRST)), IncompatibleAdapter, "classifier.0.weight: only in the base"),
        (
            lambda f: rewrite(f, lambda w: w.update({FIRST: w[FIRST].T.contiguous()})),
            IncompatibleAdapter,
            "classifier.0",
        ),
        (lambda f: rewrite(f, lambda w: w[LAST].fill_(float("nan"))), DamagedAdapter, "NaN or infinite"),
        (lambda f: edit_config(f, modules_to_save=None), DamagedAdapter, "unexpected tensor"),
        (
            lambda f: rewrite(f, lambda w: [w.pop(k) for k in list(w) if "classifier" in k]),
            DamagedAdapter,
            "promises a head",
        ),
    ],
    ids=["no manifest", "labels", "missing", "transposed", "nan", "no promise", "no head"],
)
def test_damaged_heads_are_refused(
    stored: StoredAdapter, vilt: LoadedModel, tmp_path: Path, damage: Any, error: type[Exception], reason: str
) -> None:
    folder = unsealed_copy(stored, tmp_path / "copy")
    damage(folder)
    attached = AttachedAdapters(vilt)
    with pytest.raises(error, match=reason):
        attached.attach("x", folder)
    assert attached.names == []


def test_a_base_that_writes_its_answers_refuses_a_head(stored: StoredAdapter, mini: LoadedModel) -> None:
    with pytest.raises(IncompatibleAdapter, match="this base writes its answers"):
        AttachedAdapters(mini).attach("x", stored.folder)


def test_other_modules_to_save_stay_unsupported(stored: StoredAdapter, vilt: LoadedModel, tmp_path: Path) -> None:
    folder = unsealed_copy(stored, tmp_path / "copy")
    edit_config(folder, modules_to_save=["classifier", "pooler"])
    with pytest.raises(ValueError, match="modules_to_save"):
        AttachedAdapters(vilt).attach("x", folder)
    assert json.loads((stored.folder / "adapter_config.json").read_text())["modules_to_save"] == ["classifier"]
