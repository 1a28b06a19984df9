"""An adapter that begins with another one: where that one ended, with all that it has seen."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.factors import read_updates
from lorax_vlm.adapters.seen import read_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import AdapterNotFound, IncompatibleAdapter, TrainingError, UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.workspace import Workspace
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
    from lorax_vlm.training.trainer import AdapterTrainer

    original = AdapterTrainer.training_step

    def stop(self: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(workspace, "killed", splits, init_from="first")
    with pytest.raises(TrainingError, match="init_from"):
        train(workspace, "killed", splits, recipe="light", resume=True)
    resumed = train(workspace, "killed", splits, init_from="first", resume=True)
    assert resumed.manifest.training["best_validation_loss"] == pytest.approx(
        made.manifest.training["best_validation_loss"], rel=1e-4
    )


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
    with pytest.raises((IncompatibleAdapter, AdapterNotFound, UsageError)):
        workspace.train(
            "other", caption("concise"), base="blip2_flan", data=splits, config=FEW, progress=False, init_from="first"
        )
    workshop = workspace.workshop("blip2_opt")
    orders = [
        workshop.order(name, caption("concise"), data=splits, config=FEW, init_from="first") for name in ("one", "two")
    ]
    with pytest.raises(UsageError, match="one, two: adapters that begin with others are trained alone"):
        workspace.train_orders("blip2_opt", orders, progress=False)
