"""Adapters trained together are those trained alone: PEFT's own layers in one run each are the oracle."""

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.pair import WEIGHTS_FILE
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import TrainingError
from lorax_vlm.models.families.vilt import ViltFamily
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.skills import answer, caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.joint_trainer import JointTrainer
from lorax_vlm.training.progress import ProgressBar
from lorax_vlm.training.runs import TrainingResult
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from tests.interruptions_for_tests import interrupt

TOLERANCE = 1e-7  # in double precision: Adam blows rounding up where a gradient is zero, as that of T5's keys
FAMILIES = ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"]
QUICK = TrainConfig(max_steps=4, batch_size=4, learning_rate=1e-3, eval_every=2, patience=None)


def weights(result: TrainingResult) -> dict[str, Tensor]:
    return load_file(result.folder / WEIGHTS_FILE)


def make_plans(base: LoadedModel) -> list[AdapterPlan]:
    """Ranks, sites, data, rates, batch sizes, accumulation, clipping and length all differ."""
    if base.entry.captions:
        first, second = skill_splits(caption("detailed"), 10, 6), skill_splits(caption("concise"), 9, 5)
    else:
        first, second = skill_splits(answer("counting"), 10, 6), skill_splits(answer("reasoning"), 9, 5)
    prompt = base.entry.caption_prompt if base.entry.captions else base.entry.question_template
    plans = [
        AdapterPlan("one", Recipe("one", 4, ("lm-qv",)), first.with_prompt(prompt), QUICK),
        AdapterPlan(
            "two",
            Recipe("two", 2, ("lm-attention", "lm-mlp"), alpha=7),
            second.with_prompt(prompt),
            dataclasses.replace(
                QUICK, max_steps=3, batch_size=2, gradient_accumulation=2, learning_rate=3e-3, seed=5,
                max_grad_norm=0.05, weight_decay=0.1, rows_per_image=2,
            ),
        ),
    ]  # fmt: skip
    if not isinstance(base.family, ViltFamily):
        return plans
    return [
        dataclasses.replace(plan, labels=base.family.plan_labels([[e.target] for e in plan.data.train], 1).labels)
        for plan in plans
    ]


def alone(base: LoadedModel, plan: AdapterPlan, run_dir: Path) -> TrainingResult:
    return train_adapter(base, plan, run_dir, progress=False)


def assert_equal(together: TrainingResult, single: TrainingResult) -> None:
    ours, theirs = weights(together), weights(single)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key], tensor, atol=TOLERANCE), key
        if ".lora_B." in key:
            assert tensor.abs().max() > 1e-4, f"{key} learnt nothing that could differ"
    assert together.steps == single.steps
    assert together.first_validation_loss == pytest.approx(single.first_validation_loss, rel=1e-4)
    assert together.best_validation_loss == pytest.approx(single.best_validation_loss, rel=1e-3)
    assert together.trainable_parameters == single.trainable_parameters


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_trained_together_are_those_trained_alone(name: str, tmp_path: Path) -> None:
    base = load_model(name, dtype="float32")
    base.model.double()
    before = {key: tensor.clone() for key, tensor in base.model.state_dict().items()}
    plans = make_plans(base)
    together = train_adapters(base, plans, tmp_path / "joint", progress=False)
    assert list(together) == ["one", "two"]
    after = base.model.state_dict()
    assert after.keys() == before.keys(), "the base is plain again"
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    for plan in plans:
        assert_equal(together[plan.name], alone(base, plan, tmp_path / plan.name))


def test_a_killed_run_continues_to_the_same_adapters(mini: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    plans = make_plans(mini)
    whole = train_adapters(mini, plans, tmp_path / "whole", progress=False)
    interrupt(monkeypatch, 2, trainer=JointTrainer)
    with pytest.raises(KeyboardInterrupt):
        train_adapters(mini, plans, tmp_path / "killed", progress=False)
    monkeypatch.undo()
    resumed = train_adapters(mini, plans, tmp_path / "killed", progress=False, resume=True)
    for name, result in whole.items():
        expected, found = weights(result), weights(resumed[name])
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert resumed[name].history == result.history
        assert resumed[name].first_validation_loss == result.first_validation_loss
    other = [dataclasses.replace(plans[0], config=dataclasses.replace(QUICK, max_steps=9)), plans[1]]
    with pytest.raises(TrainingError, match="other settings"):
        train_adapters(mini, other, tmp_path / "killed", progress=False, resume=True)


@pytest.mark.parametrize("at", [3, 5, 7, 9])
def test_a_run_with_dropout_and_patience_continues_to_the_same_adapters(
    at: int, mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine and ten examples: epochs end within the steps, where loaders draw numbers as well."""
    config = dataclasses.replace(QUICK, max_steps=10, patience=2, learning_rate=0.02)
    plans = [
        dataclasses.replace(
            plan, recipe=dataclasses.replace(plan.recipe, dropout=0.3), config=dataclasses.replace(config, seed=seed)
        )
        for seed, plan in enumerate(make_plans(mini))
    ]
    whole = train_adapters(mini, plans, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        interrupt(patch, at, trainer=JointTrainer)
        with contextlib.suppress(KeyboardInterrupt):  # where both had stopped before
            train_adapters(mini, plans, tmp_path / "killed", progress=False)
    told = Told()
    resumed = train_adapters(mini, plans, tmp_path / "killed", progress=told, resume=True)
    for name, result in whole.items():
        assert (resumed[name].steps, resumed[name].best_step) == (result.steps, result.best_step)
        assert resumed[name].history == result.history
        expected, found = weights(result), weights(resumed[name])
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert len(told.ended) == len(set(told.ended)), "that one has stopped is told once"


class Told:
    """Hears which adapters stop."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def stopped(self, name: str, step: int) -> None:
        self.ended.append(name)

    def __getattr__(self, name: str):
        return lambda *_: None


def test_one_adapter_stops_early_and_the_others_go_on(mini: LoadedModel, tmp_path: Path) -> None:
    plans = make_plans(mini)
    longer = dataclasses.replace(QUICK, max_steps=8)
    # A rate at which nothing gets better after the first validation, on any machine, with the least patience.
    still = dataclasses.replace(longer, learning_rate=1e-30, patience=1)
    plans = [dataclasses.replace(plans[0], config=longer), dataclasses.replace(plans[1], config=still)]
    together = train_adapters(mini, plans, tmp_path / "joint", progress=False)
    assert together["one"].steps == 8
    assert together["two"].steps == 4
    assert together["two"].steps == alone(mini, plans[1], tmp_path / "two").steps


@pytest.mark.parametrize("killed", [False, True])
def test_the_longest_stops_early_and_another_ends_between_two_validations(
    killed: bool, mini: LoadedModel, tmp_path: Path, monkeypatch
) -> None:
    """Then nobody learns any more, although the run was planned to be longer."""
    plans = make_plans(mini)
    long = dataclasses.replace(QUICK, max_steps=12, learning_rate=1e-30, patience=1)
    short = dataclasses.replace(QUICK, max_steps=7)
    plans = [dataclasses.replace(plans[0], config=long), dataclasses.replace(plans[1], config=short)]
    if killed:
        interrupt(monkeypatch, 6, trainer=JointTrainer)
        with pytest.raises(KeyboardInterrupt):
            train_adapters(mini, plans, tmp_path / "joint", progress=False)
        monkeypatch.undo()
    together = train_adapters(mini, plans, tmp_path / "joint", progress=False, resume=killed)
    assert together["one"].steps == 4
    assert together["two"].steps == 7
    again = train_adapters(mini, plans, tmp_path / "joint", progress=False, resume=True)
    assert again == together
    single = alone(mini, plans[1], tmp_path / "two")
    assert (single.steps, single.best_step) == (together["two"].steps, together["two"].best_step)


def test_no_better_than_the_beginning_ends_as_the_beginning(mini: LoadedModel, tmp_path: Path) -> None:
    plans = make_plans(mini)
    wild = dataclasses.replace(QUICK, learning_rate=1e4, max_grad_norm=1e9)
    plans = [dataclasses.replace(plans[0], config=wild), plans[1]]
    together = train_adapters(mini, plans, tmp_path / "joint", progress=False)
    single = alone(mini, plans[0], tmp_path / "alone")
    for result in (together["one"], single):
        assert result.best_step == 0
        assert result.best_validation_loss == result.first_validation_loss
        assert all(row["eval_loss"] > result.first_validation_loss for row in result.history if row.get("eval_loss"))
        assert read_adapter_files(result.folder, "a").changes_nothing, "the beginning is the identity"
    rejected = [tmp_path / "joint" / "adapters" / "one" / "rejected" / "a0", tmp_path / "alone" / "rejected"]
    assert not any(read_adapter_files(folder, "a").changes_nothing for folder in rejected)
    assert together["two"].best_step > 0


def test_every_image_is_encoded_once_for_all_adapters(mini: LoadedModel, tmp_path: Path, monkeypatch) -> None:
    prompt = mini.entry.caption_prompt
    data = [skill_splits(caption(style), 8, 4).with_prompt(prompt) for style in ("detailed", "concise", "creative")]
    recipe = Recipe("one", 4, ("lm-qv",))
    plans = [AdapterPlan(f"style{index}", recipe, splits, QUICK) for index, splits in enumerate(data)]
    seen: list[int] = []
    original = type(mini.family).encode_images

    def spy(self, model, pixels, prompts):
        seen.append(len(pixels))
        return original(self, model, pixels, prompts)

    monkeypatch.setattr(type(mini.family), "encode_images", spy)
    train_adapters(mini, plans, tmp_path / "joint", progress=False)
    assert sum(seen) == 8 + 4


def test_plans_that_cannot_run_together(mini: LoadedModel, tmp_path: Path) -> None:
    one, two = make_plans(mini)
    with pytest.raises(ValueError, match="different names"):
        train_adapters(mini, [one, one], tmp_path, progress=False)
    with pytest.raises(ValueError, match="different names"):
        train_adapters(mini, [], tmp_path, progress=False)
    for change in ({"eval_every": 1}, {"mixed_precision": True}, {"gradient_checkpointing": True}):
        other = dataclasses.replace(two, config=dataclasses.replace(two.config, **change))
        with pytest.raises(ValueError, match=f"{next(iter(change))} is of the whole run"):
            train_adapters(mini, [one, other], tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def training_losses(result: TrainingResult) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in result.history if "loss" in row}


def test_training_losses_are_those_of_each_alone(mini: LoadedModel, tmp_path: Path) -> None:
    """Also at a last step that is no validation, and after it, when the others go on."""
    plans = [
        dataclasses.replace(plan, config=dataclasses.replace(plan.config, max_steps=steps, eval_every=10))
        for plan, steps in zip(make_plans(mini), (12, 15), strict=True)
    ]
    together = train_adapters(mini, plans, tmp_path / "joint", progress=False)
    for plan in plans:
        expected = training_losses(alone(mini, plan, tmp_path / plan.name))
        assert len(expected) > 5
        assert training_losses(together[plan.name]) == pytest.approx(expected, rel=1e-3)


def test_losses_are_told_of_the_adapter_that_they_are_of(mini: LoadedModel, tmp_path: Path) -> None:
    """Whatever adapters are called: a log has one loss by each name."""
    told: list[tuple[int, list[str]]] = []

    class Notes(ProgressBar):
        def validated(self, step: int, losses: Mapping[str, float]) -> None:
            told.append((step, sorted(losses)))

    plans = [dataclasses.replace(plan, name=name) for plan, name in zip(make_plans(mini), ("x", "eval_x"), strict=True)]
    train_adapters(mini, plans, tmp_path / "names", progress=Notes(Console(file=io.StringIO())))
    assert told == [(0, ["eval_x", "x"]), (2, ["eval_x", "x"]), (3, ["eval_x"]), (4, ["x"])]
