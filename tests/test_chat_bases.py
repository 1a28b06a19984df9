"""A chat model has what the others have: lessons alone and together, captions, answers, records."""

from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.models.families.tiles import TilesFamily
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.requests import Request
from lorax_vlm.skills import Skill, answer, caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.feature_cache import FeatureCache, encoder_digest
from lorax_vlm.training.inspection import inspect_batch
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.runs import TrainingResult
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from lorax_vlm.workspace import Workspace
from tests.tiny_chat import write_tiny

QUICK = TrainConfig(max_steps=4, batch_size=4, eval_every=2, learning_rate=1e-2, patience=None)
TEXT = Recipe("text", rank=2, groups=("lm-attention",))
SEES = Recipe("sees", rank=2, groups=("lm-attention", "projection", "vision"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(scope="module", params=[16, 80], ids=["one tile", "five tiles"])
def base(folder: Path, request: pytest.FixtureRequest) -> LoadedModel:
    return load_model(str(folder), dtype="float32", image_tokens=request.param)


@pytest.fixture
def workspace(folder: Path, tmp_path: Path) -> Workspace:
    return Workspace(store=tmp_path / "store", dtype="float32", image_tokens=80)


def plan_of(base: LoadedModel, style: str, recipe: Recipe) -> AdapterPlan:
    splits = skill_splits(caption(style), 8, 4).with_prompt(base.entry.caption_prompt)
    return AdapterPlan(style, recipe, splits, QUICK)


def losses_of(result: TrainingResult) -> list[float]:
    return [row["eval_loss"] for row in result.history if "eval_loss" in row]


def require_the_same_alone(base: LoadedModel, plans: list[AdapterPlan], folder: Path) -> None:
    together = train_adapters(base, plans, folder / "together", progress=False)
    for plan in plans:
        alone = train_adapter(base, plan, folder / plan.name, progress=False)
        assert alone.best_validation_loss < alone.first_validation_loss
        assert losses_of(alone) == pytest.approx(losses_of(together[plan.name]), abs=2e-4)


@pytest.mark.parametrize("recipe", [TEXT, SEES], ids=["text", "sees"])
def test_learning_together_is_learning_alone(base: LoadedModel, tmp_path: Path, recipe: Recipe) -> None:
    plans = [plan_of(base, style, recipe) for style in ("concise", "detailed")]
    require_the_same_alone(base, plans, tmp_path)


def test_learning_together_on_images_of_different_sizes(folder: Path, tmp_path: Path) -> None:
    """Where the image path learns: tiles of one adapter's images are not updated by the other."""
    base = load_model(str(folder), dtype="float32", image_tokens=160)
    sizes = [(300, 100), (100, 300), (64, 64), (250, 90)]
    plans = []
    for number, name in enumerate(("small", "large")):
        scenes = list(iterate_scenes("test", 12))[number::2]
        examples = [
            Example(scene.image.resize(sizes[2 * number + row % 2]), scene.caption("concise"), f"{name} {row}")
            for row, scene in enumerate(scenes)
        ]
        splits = DataSplits(examples[:4], examples[4:], name).with_prompt(base.entry.caption_prompt)
        plans.append(AdapterPlan(name, SEES, splits, QUICK))
    require_the_same_alone(base, plans, tmp_path)


def test_features_are_kept_and_trained_on_as_pixels_are(base: LoadedModel, tmp_path: Path) -> None:
    plan, losses = plan_of(base, "concise", TEXT), []
    for run, features in (("none", None), ("fills", tmp_path / "f"), ("reads", tmp_path / "f")):
        result = train_adapter(base, plan, tmp_path / run, progress=False, features_dir=features)
        losses.append(losses_of(result))
    assert losses[0] == losses[1] == losses[2]
    cache = FeatureCache(tmp_path / "f", encoder_digest(base))
    assert len(cache) == 12
    other = load_model(str(base.folder), dtype="float32", image_tokens=10 * 16)
    assert not len(FeatureCache(tmp_path / "f", encoder_digest(other))), "another number of tokens, other features"


def test_a_batch_explains_itself_and_depends_on_its_images(base: LoadedModel) -> None:
    examples = skill_splits(caption("concise"), 4, 4).with_prompt(base.entry.caption_prompt).train
    found = inspect_batch(base, list(examples))
    assert found.verdict == "depends"
    assert all(row.ends_with_eos for row in found.rows)
    learnt = ["".join(piece for piece, carries in row.tokens if carries) for row in found.rows]
    assert learnt == [f" {example.target}<end_of_utterance>" for example in examples]


def test_a_store_of_its_adapters_answers_and_checks_itself(workspace: Workspace, folder: Path, tmp_path: Path) -> None:
    def train(name: str, skill: Skill) -> StoredAdapter:
        options: dict[str, Any] = {"data": skill_splits(skill, 8, 4), "recipe": "light", "config": QUICK}
        return workspace.train(name, skill, base=str(folder), progress=False, **options)

    short, count = train("short", caption("concise")), train("count", answer("counting"))
    scene = skill_splits(caption("concise"), 8, 4).train[0].open_image()
    with workspace.bases.use(str(folder)) as engine:
        assert isinstance(engine.base.family, TilesFamily)
        requests = [
            Request.about(scene, None, "short"),
            Request.about(scene, "How many shapes are there?", "count"),
            Request.about(scene.resize((200, 60)), "How many shapes are there?"),
            Request.about(scene),
        ]
        said = [result.text for result in engine.generate(requests)]
        assert said == [engine.generate([request])[0].text for request in requests]
        for stored in (short, count):
            assert stored.manifest.canary is not None
            assert stored.manifest.base is not None
            assert stored.manifest.base.configuration["image_tokens"] == 80
            report = engine.check_canary(stored.folder, stored.manifest)
            assert report is not None
            assert report.exact
