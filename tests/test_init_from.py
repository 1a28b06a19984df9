"""An adapter that begins with another one: where that one ended, with all that it has seen."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.factors import read_updates
from lorax_vlm.adapters.recipe import RECIPES, Recipe, change_recipe
from lorax_vlm.adapters.seen import read_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.cli.adapters import state_of
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import AdapterNotFound, IncompatibleAdapter, TrainingError, UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.workspace import Workspace
from tests.interruptions_for_tests import interrupt
from tests.workspaces_for_tests import shared_workspace

FEW = TrainConfig(max_steps=6, batch_size=8, eval_every=3, learning_rate=5e-3, patience=None)
STILL = dataclasses.replace(FEW, learning_rate=1e-30)


@pytest.fixture
def workspace(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> Iterator[Workspace]:
    with shared_workspace(load_shared, tmp_path / "store") as workspace:
        yield workspace


@pytest.fixture
def splits() -> DataSplits:
    return skill_splits(caption("concise"), 24, 8)


def train(workspace: Workspace, name: str, splits: DataSplits, **wanted: Any) -> StoredAdapter:
    wanted = {"config": FEW, "progress": False, **wanted}
    return workspace.train(name, caption("concise"), base="blip2_opt", data=splits, **wanted)


def test_it_begins_where_the_other_ended(workspace: Workspace, splits: DataSplits) -> None:
    first = train(workspace, "first", splits, recipe="light")
    more = train(workspace, "more", splits, init_from="first")
    losses = [one.manifest.training for one in (first, more)]
    assert losses[1]["first_validation_loss"] == pytest.approx(losses[0]["best_validation_loss"], rel=1e-4)
    assert losses[1]["best_validation_loss"] < losses[0]["best_validation_loss"]
    assert more.manifest.training["recipe"] == first.manifest.training["recipe"], "the other's is the usual one"
    assert more.manifest.training["init_from"] == {"adapter": "first@1", "digest": first.digest}
    assert [parent.name for parent in more.manifest.lineage] == ["first"]


def test_of_a_larger_rank_its_update_is_the_same_at_first(workspace: Workspace, splits: DataSplits) -> None:
    train(workspace, "first", splits, recipe="light")
    train(workspace, "wider", splits, init_from="first", recipe="medium", config=STILL)
    before, after = (read_updates(workspace.store.read_bytes(name)[1]) for name in ("first", "wider"))
    assert before.keys() < after.keys()
    for site, update in before.items():
        assert after[site].b @ after[site].a == pytest.approx(update.b @ update.a, abs=1e-5)
    assert after[next(iter(before))].rank == 8


def test_what_is_changed_is_changed_of_the_others_recipe(workspace: Workspace, splits: DataSplits) -> None:
    first = train(workspace, "first", splits, recipe="heavy")
    more = train(workspace, "more", splits, init_from="first", recipe={"rank": 20})
    assert more.manifest.training["recipe"]["sites"] == first.manifest.training["recipe"]["sites"]
    assert [one.manifest.training["recipe"]["rank"] for one in (first, more)] == [16, 20]
    with pytest.raises(UsageError, match="has no 'ranks' to change"):
        train(workspace, "odd", splits, init_from="first", recipe={"ranks": 20})


def test_a_recipe_is_read_as_it_was_written() -> None:
    every = Recipe("own", 4, ("lm-qv", "vision"), 6.0, 0.1, ("qformer.layernorm",))
    for recipe in (every, RECIPES["light"], change_recipe(RECIPES["heavy"], rank=3)):
        record = recipe.to_dict()
        read = Recipe.from_dict(json.loads(json.dumps(record)), "blip2-opt")
        assert read.to_dict() == record
        assert (read.groups, read.modules) == (recipe.groups, recipe.modules)
        with pytest.raises(UsageError, match="no record of a recipe"):
            Recipe.from_dict({**record, "more": 1}, "blip2-opt")


def test_what_the_other_has_seen_counts_as_seen(workspace: Workspace, splits: DataSplits) -> None:
    later = skill_splits(caption("concise"), 40, 8)
    later = dataclasses.replace(later, train=list(later.train)[24:])
    train(workspace, "first", splits)
    more = train(workspace, "more", later, init_from="first")
    seen = read_seen(more.folder, more.manifest)
    assert seen is not None
    assert all(seen.contains(example.image_digest()) for example in [*splits.train, *later.train])
    assert not any(seen.contains(example.image_digest()) for example in later.validation)


def test_it_is_part_of_what_an_adapter_is_made_of(
    workspace: Workspace, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(workspace, "first", splits, recipe="light")
    plain = train(workspace, "plain", splits, recipe="light")
    made = workspace.create("more", caption("concise"), base="blip2_opt", data=splits, config=FEW, init_from="first")
    again = workspace.create("more", caption("concise"), base="blip2_opt", data=splits, config=FEW, init_from="first")
    assert (again.digest, again.version) == (made.digest, 1)
    assert made.digest != plain.digest
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(workspace, "killed", splits, init_from="first")
    with pytest.raises(TrainingError, match="init_from"):
        train(workspace, "killed", splits, recipe="light", resume=True)
    resumed = train(workspace, "killed", splits, init_from="first", resume=True)
    assert resumed.manifest.training["best_validation_loss"] == pytest.approx(
        made.manifest.training["best_validation_loss"], rel=1e-4
    )


def test_another_adapter_of_that_name_is_another_beginning(
    workspace: Workspace, splits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed and trained anew while a run that began with it waited: both are its version 1."""
    train(workspace, "first", splits)
    with monkeypatch.context() as patch:
        interrupt(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(workspace, "more", splits, init_from="first")
    workspace.store.remove("first")
    train(workspace, "first", splits, config=dataclasses.replace(FEW, max_steps=3))
    with pytest.raises(TrainingError, match=r"init_from\.digest: started with"):
        train(workspace, "more", splits, init_from="first", resume=True)


def test_what_is_no_better_than_its_beginning_does_not_change_nothing(workspace: Workspace, splits: DataSplits) -> None:
    train(workspace, "first", splits)
    plain, more = (
        train(workspace, name, splits, config=STILL, **start).manifest
        for name, start in (("plain", {}), ("more", {"init_from": "first"}))
    )
    assert (plain.no_better, more.no_better) == (True, True)
    assert [state_of(manifest) for manifest in (plain, more)] == ["no better than its base", "no better than first@1"]
    before, after = (read_updates(workspace.store.read_bytes(name)[1]) for name in ("first", "more"))
    for site, update in before.items():
        assert after[site].b @ after[site].a == pytest.approx(update.b @ update.a, abs=1e-5)


def test_it_is_validated_on_nothing_that_the_other_has_seen(
    workspace: Workspace, splits: DataSplits, caplog: pytest.LogCaptureFixture
) -> None:
    train(workspace, "first", splits)
    mixed = dataclasses.replace(splits, validation=[*splits.train[:5], *splits.validation])
    assert "trained on" not in caplog.text
    more, alike = (train(workspace, name, data, init_from="first") for name, data in (("a", mixed), ("b", splits)))
    assert "first@1 was trained on 5 of 13 validation examples; they are left out." in caplog.text
    losses = [one.manifest.training["best_validation_loss"] for one in (more, alike)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(UsageError, match="trained on all validation examples"):
        train(workspace, "c", dataclasses.replace(splits, validation=splits.train[:5]), init_from="first")


def test_without_data_there_is_nothing_to_begin(
    workspace: Workspace, splits: DataSplits, mini: LoadedModel, tmp_path: Path
) -> None:
    """On a base that is no miniature: an untrained adapter would not have begun with anything."""
    train(workspace, "first", splits)
    own = shutil.copytree(mini.folder, tmp_path / "mymodel")
    with pytest.raises(UsageError, match="takes data="):
        workspace.create("more", caption("concise"), base=str(own), init_from="first")


def test_what_it_cannot_begin_with_is_said(workspace: Workspace, splits: DataSplits) -> None:
    train(workspace, "first", splits, recipe="medium")
    with pytest.raises(AdapterNotFound):
        train(workspace, "more", splits, init_from="nobody")
    with pytest.raises(UsageError, match="modules that recipe 'light' does not"):
        train(workspace, "more", splits, init_from="first", recipe="light")
    narrow = dataclasses.replace(
        workspace.workshop("blip2_opt").order("x", caption("concise"), recipe="medium").recipe, rank=4
    )
    with pytest.raises(UsageError, match="has rank 8, and recipe 'medium' 4: --rank 8"):
        train(workspace, "more", splits, init_from="first", recipe=narrow)
    with pytest.raises(IncompatibleAdapter, match="blip2-flan-mini"):
        workspace.train(
            "other", caption("concise"), base="blip2_flan", data=splits, config=FEW, progress=False, init_from="first"
        )
    workshop = workspace.workshop("blip2_opt")
    orders = [
        workshop.order(name, caption("concise"), data=splits, config=FEW, init_from="first") for name in ("one", "two")
    ]
    with pytest.raises(UsageError, match="one, two: adapters that begin with others are trained alone"):
        workspace.train_orders("blip2_opt", orders, progress=False)
