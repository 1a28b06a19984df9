"""Training: what learns, what stays frozen, and what survives a kill."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from rich.console import Console
from safetensors.torch import load_file
from transformers import Trainer

from lorax_vlm.adapters.files import read_adapter_files
from lorax_vlm.adapters.peft_layers import add_peft_layers
from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import ExampleError, NonFiniteLoss, NothingToResume, TrainingError
from lorax_vlm.models.families.base import target_loss
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import keep_base_in_evaluation, peft_copy, write_untrained_adapter
from lorax_vlm.training.nonfinite import find_nonfinite_module
from lorax_vlm.training.progress import ProgressBar
from lorax_vlm.training.resuming import read_elapsed
from lorax_vlm.training.runs import REJECTED_FOLDER, is_complete, seal_checkpoint
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from tests.adapters_for_tests import EVERYWHERE
from tests.interruptions_for_tests import interrupt

QUICK = TrainConfig(max_steps=6, batch_size=4, learning_rate=5e-3, eval_every=3, patience=None)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return skill_splits(caption("concise"), 24, 8)


def run(mini: LoadedModel, splits: DataSplits, folder: Path, config: TrainConfig = QUICK, **options):
    recipe = options.pop("recipe", "light")
    return train_adapter(
        mini, AdapterPlan("adapter", get_recipe(recipe), splits, config), folder, progress=False, **options
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_a_run_leaves_an_adapter_and_a_curve(mini: LoadedModel, splits, tmp_path: Path) -> None:
    result = run(mini, splits, tmp_path / "run")
    assert result.best_validation_loss < result.first_validation_loss
    assert result.steps == 6
    assert not read_adapter_files(result.folder, "a").changes_nothing
    assert result.curve.read_bytes().startswith(b"\x89PNG")
    assert result.trainable_parameters == 6 * 4 * (160 + 160)


def test_on_a_bfloat16_base_the_adapter_stays_float32(splits, tmp_path: Path) -> None:
    result = run(load_model("blip2-opt-mini", dtype="bfloat16"), splits, tmp_path / "run")
    assert {tensor.dtype for tensor in weights(result.folder).values()} == {torch.float32}
    assert result.best_validation_loss < result.first_validation_loss


def test_equal_seeds_give_equal_adapters(mini: LoadedModel, splits, tmp_path: Path) -> None:
    first, second = (weights(run(mini, splits, tmp_path / name).folder) for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_callers_random_state_is_given_back(mini: LoadedModel, splits, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(mini, splits, tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_an_untrained_adapter_is_the_identity(mini: LoadedModel, tmp_path: Path) -> None:
    folder = write_untrained_adapter(mini, get_recipe("medium"), tmp_path / "zero")
    assert read_adapter_files(folder, "zero").changes_nothing


def test_every_adapter_tensor_learns_and_nothing_else(mini: LoadedModel, splits) -> None:
    """A has no gradient in the first step because B is zero; by the second every factor must have one."""
    model = peft_copy(mini, EVERYWHERE, 0)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trainable)
    optimizer = torch.optim.SGD(trainable.values(), lr=1.0)
    batch = _batch(mini, splits)
    labels = batch.pop("labels")
    for _ in range(2):
        optimizer.zero_grad()
        target_loss(model(**batch).logits, labels).backward()
        gradients = {name: p.grad for name, p in trainable.items()}
        optimizer.step()
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients.values())


def _batch(mini: LoadedModel, splits: DataSplits, rows: slice = slice(0, 8)):
    examples = splits.train[rows]
    pixels = mini.family.prepare([example.open_image() for example in examples])
    return mini.family.training_batch(pixels, [""] * len(examples), [example.target for example in examples])


# --- gradient accumulation ----------------------------------------------------------------------------------------


def test_accumulated_steps_equal_one_large_batch(mini: LoadedModel, tmp_path: Path) -> None:
    """Rows differ in length, so averaging the means of the parts would not give the same."""
    splits = skill_splits(caption("detailed"), 16, 4)
    whole = TrainConfig(max_steps=3, batch_size=8, gradient_accumulation=1, eval_every=3, patience=None)
    parts = TrainConfig(max_steps=3, batch_size=2, gradient_accumulation=4, eval_every=3, patience=None)
    one = run(mini, splits, tmp_path / "one", whole)
    four = run(mini, splits, tmp_path / "four", parts)
    a, b = weights(one.folder), weights(four.folder)
    for key in a:
        assert torch.allclose(a[key], b[key], atol=2e-6), key
    losses = [[row["loss"] for row in result.history if "loss" in row] for result in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- the frozen base ----------------------------------------------------------------------------------------------


def test_frozen_parts_do_not_drop_out_in_training(mini: LoadedModel, splits) -> None:
    batch = _batch(mini, splits)
    batch.pop("labels")
    model = peft_copy(mini, Recipe("x", 4, ("lm-qv",), dropout=0.5), 0)
    with torch.no_grad():
        reference = model(**batch).logits
        model.train()
        assert not torch.equal(model(**batch).logits, reference), "the libraries' own mode drops out frozen features"
        keep_base_in_evaluation(model)
        assert torch.equal(model(**batch).logits, reference)
        dropouts = [module for name, module in model.named_modules() if name.endswith("lora_dropout.default")]
        assert dropouts
        assert all(module.training for module in dropouts)


def test_the_trainer_keeps_the_base_in_evaluation(mini: LoadedModel, splits, tmp_path, monkeypatch) -> None:
    modes = []
    original = Trainer.compute_loss

    def spy(self, model, *args, **kwargs):
        modes.append([name for name, module in model.named_modules() if module.training])
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(Trainer, "compute_loss", spy)
    run(mini, splits, tmp_path / "run", recipe=Recipe("x", 4, ("lm-qv",), dropout=0.1))
    assert any(modes)
    assert all("lora_dropout" in name for names in modes for name in names)


# --- losses that are not finite ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_module(mini, splits, tmp_path: Path) -> None:
    norm = mini.model.language_model.model.decoder.layers[1].final_layer_norm
    kept = norm.weight.data.clone()
    norm.weight.data[0] = float("nan")
    try:
        with pytest.raises(NonFiniteLoss) as caught:
            run(mini, splits, tmp_path / "run", TrainConfig(max_steps=2, batch_size=4, eval_every=2))
    finally:
        norm.weight.data = kept
    assert caught.value.module == "language_model.model.decoder.layers.1.final_layer_norm"
    assert "(base in float32)" in str(caught.value)
    assert caught.value.next == "Lower the learning rate.", "another precision is no way out of the highest"
    assert "--dtype bfloat16 or float32" in NonFiniteLoss(1, None, "float16").next


def test_finding_leaves_no_hooks(mini: LoadedModel, splits) -> None:
    assert find_nonfinite_module(mini.model, _batch(mini, splits)) is None
    assert not any(module._forward_hooks for module in mini.model.modules())


def test_empty_targets_are_named_before_they_give_nan(mini: LoadedModel, splits) -> None:
    pixels = mini.family.prepare([splits.train[0].open_image()])
    with pytest.raises(ExampleError, match=r"metadata\.jsonl:3: its target text is empty"):
        mini.family.training_batch(pixels, [""], [" \n "], names=["metadata.jsonl:3"])


def test_training_on_a_base_with_adapters_is_refused(mini: LoadedModel, splits, tmp_path: Path) -> None:
    base = load_model("blip2-opt-mini")
    add_peft_layers(base.model, LoraConfig(r=2, target_modules=r".*q_proj"), "default")
    with pytest.raises(TrainingError, match="Adapters are attached"):
        run(base, splits, tmp_path / "run")


# --- early stopping, resuming, kills --------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best(mini: LoadedModel, splits, tmp_path: Path) -> None:
    wild = TrainConfig(max_steps=60, batch_size=4, learning_rate=0.5, eval_every=2, patience=2)
    result = run(mini, splits, tmp_path / "run", wild)
    losses = [row["eval_loss"] for row in result.history if "eval_loss" in row]
    assert result.steps < 60
    assert result.best_validation_loss == min(losses)
    assert losses[-1] > min(losses)


def test_a_rate_at_which_nothing_is_learnt_leaves_the_base_as_it_is(mini: LoadedModel, tmp_path: Path) -> None:
    """What was trained is kept beside the run, under another name."""
    absurd = TrainConfig(max_steps=4, batch_size=4, learning_rate=1e4, eval_every=2, patience=None)
    result = run(mini, skill_splits(caption("plain"), 24, 8), tmp_path / "run", absurd)
    assert (result.best_step, result.best_validation_loss) == (0, result.first_validation_loss)
    assert all(row["eval_loss"] > result.first_validation_loss for row in result.history if row.get("eval_loss"))
    assert read_adapter_files(result.folder, "a").changes_nothing
    assert not read_adapter_files(tmp_path / "run" / REJECTED_FOLDER, "a").changes_nothing


def test_resume_without_a_checkpoint(mini: LoadedModel, splits, tmp_path: Path) -> None:
    with pytest.raises(NothingToResume, match="Start without --resume"):
        run(mini, splits, tmp_path / "run", resume=True)


class Stop(Exception):
    """Stands for any interruption."""


LONGER = TrainConfig(max_steps=10, batch_size=4, learning_rate=5e-3, eval_every=2, patience=None)


def test_a_resumed_run_ends_with_the_same_adapter(mini, splits, tmp_path: Path, monkeypatch) -> None:
    whole = run(mini, splits, tmp_path / "straight", LONGER)
    straight = weights(whole.folder)
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", LONGER)
    assert (tmp_path / "run" / "checkpoint-6").is_dir()
    with pytest.raises(TrainingError, match="has other settings"):
        run(mini, splits, tmp_path / "run", QUICK, resume=True)
    resumed = run(mini, splits, tmp_path / "run", LONGER, resume=True)
    assert resumed.steps == 10
    assert resumed.first_validation_loss > resumed.best_validation_loss
    for mine, expected in zip(resumed.history, whole.history, strict=True):
        assert mine["step"] == expected["step"]
        for loss in ("loss", "eval_loss"):
            assert (
                mine.get(loss) == pytest.approx(expected.get(loss), rel=1e-4) if loss in expected else loss not in mine
            )
    again = run(mini, splits, tmp_path / "run", LONGER, resume=True)
    assert again == resumed, "a run killed between its end and the store is not trained again"
    for key, tensor in weights(resumed.folder).items():
        assert torch.allclose(tensor, straight[key], atol=1e-6), key


def test_losses_in_the_log_are_those_of_a_run_in_one_piece(mini, splits, tmp_path: Path, monkeypatch) -> None:
    """Also where the interval of validations is one that a fifth of it does not divide."""
    config = dataclasses.replace(LONGER, eval_every=13, max_steps=30)
    whole = run(mini, splits, tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        interrupt(patch, 20, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", config)
    resumed = run(mini, splits, tmp_path / "run", config, resume=True)
    losses = [[(row["step"], row["loss"]) for row in one.history if "loss" in row] for one in (whole, resumed)]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert [loss for _, loss in losses[1]] == pytest.approx([loss for _, loss in losses[0]], rel=1e-3)


def test_starting_over_says_what_is_given_up(mini, splits, tmp_path: Path, caplog) -> None:
    run(mini, splits, tmp_path / "run", LONGER)
    assert not caplog.records
    run(mini, splits, tmp_path / "run", QUICK)
    assert "was of other data or settings, and is given up" in caplog.text
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


def test_an_unfinished_run_of_the_same_settings_goes_on_unasked(
    mini, splits, tmp_path: Path, monkeypatch, caplog
) -> None:
    """Whoever forgets --resume loses nothing, and gets what a new run would have given."""
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", LONGER)
    went_on = run(mini, splits, tmp_path / "run", LONGER)
    assert "is of the same data and settings, and goes on" in caplog.text
    new = run(mini, splits, tmp_path / "new", LONGER)
    assert (went_on.folder / "adapter_model.safetensors").read_bytes() == (
        new.folder / "adapter_model.safetensors"
    ).read_bytes()


def test_half_written_checkpoints_are_passed_over(mini, splits, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", LONGER)
    (tmp_path / "run" / "checkpoint-8").mkdir()
    (tmp_path / "run" / "checkpoint-8" / "trainer_state.json").write_text('{"global_st')
    assert run(mini, splits, tmp_path / "run", LONGER, resume=True).steps == 10


TRAIN = """
import sys, torch
torch.set_num_threads(1)
from lorax_vlm.cli.main import main
sys.argv = ["lorax-vlm", "train", "victim", "--style", "concise", "--steps", "60", "--batch-size", "4",
            "--eval-every", "3", "--recipe", "light", "--replace", "--store", sys.argv[1], *sys.argv[2:]]
main()
"""


@pytest.mark.slow
def test_sigkill_loses_at_most_the_steps_since_the_last_checkpoint(isolated_home: Path, tmp_path: Path) -> None:
    """Killed at three moments of one run; the stored version in use never breaks, and the run still finishes."""
    from lorax_vlm.adapters.store import AdapterStore

    store = AdapterStore(tmp_path / "store")
    environment = {**os.environ, "LORAX_VLM_HOME": str(isolated_home), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", TRAIN, str(store.root)]
    runs = isolated_home / "runs" / "blip2-opt-mini"
    reached = 0
    for extra_steps in (3, 9):
        options = ["--resume"] if reached else []
        process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 90
        while last_checkpoint(runs) < reached + extra_steps and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before, reached = reached, last_checkpoint(runs)
        assert reached >= before + extra_steps
        assert store.list() == ([], []), "nothing half-trained is ever stored"
    done = subprocess.run([*command, "--resume", "--json"], env=environment, capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert record["manifest"]["training"]["steps"] == 60
    assert store.read("victim")[1].ranks == [4]


def last_checkpoint(runs: Path) -> int:
    found = runs.glob("victim-*/checkpoint-*")
    return max((int(path.name.removeprefix("checkpoint-")) for path in found if is_complete(path)), default=0)


class Killed(ProgressBar):
    """Ends the process, as far as can be done in a test, after the last checkpoint and before there is a result."""

    def finished(self) -> None:
        super().finished()
        raise KeyboardInterrupt


@pytest.mark.parametrize("stops_early", [False, True])
def test_a_run_that_had_ended_takes_no_further_step(
    stops_early: bool, mini: LoadedModel, splits: DataSplits, tmp_path: Path
) -> None:
    config = dataclasses.replace(QUICK, eval_every=2, max_steps=8)
    if stops_early:  # at a rate at which nothing gets better
        config = dataclasses.replace(config, learning_rate=1e-30, patience=1)
    whole = run(mini, splits, tmp_path / "whole", config)
    assert whole.steps == (4 if stops_early else 8)
    plan = AdapterPlan("adapter", get_recipe("light"), splits, config)
    with pytest.raises(KeyboardInterrupt):
        train_adapter(mini, plan, tmp_path / "killed", progress=Killed(Console(file=io.StringIO())))
    resumed = run(mini, splits, tmp_path / "killed", config, resume=True)
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    assert resumed.best_validation_loss == whole.best_validation_loss
    for key, tensor in weights(whole.folder).items():
        assert torch.equal(weights(resumed.folder)[key], tensor)


def test_a_run_is_gone_on_with_in_its_own_precision(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", LONGER)
    other = load_model("blip2-opt-mini", dtype="bfloat16")
    with pytest.raises(TrainingError, match="dtype: started with float32, now bfloat16"):
        run(other, splits, tmp_path / "run", LONGER, resume=True)
    run(mini, splits, tmp_path / "run", LONGER, resume=True)


@pytest.mark.parametrize("damaged", [True, False])
def test_the_weights_that_are_kept_are_those_of_the_best_step(
    damaged: bool, mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their checkpoint was damaged meanwhile, and where the run's folder was moved."""
    wild = TrainConfig(max_steps=12, batch_size=4, learning_rate=0.1, eval_every=2, patience=1)
    whole = run(mini, splits, tmp_path / "whole", wild)
    assert (whole.best_step, whole.steps) == (2, 4), "the best is not the last"
    place = tmp_path / "run"
    if damaged:
        plan = AdapterPlan("adapter", get_recipe("light"), splits, wild)
        with pytest.raises(KeyboardInterrupt):
            train_adapter(mini, plan, place, progress=Killed(Console(file=io.StringIO())))
        file = place / "checkpoint-2" / "adapter_model.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(NothingToResume):  # the last one, which is whole, would be stored as what it is not
            run(mini, splits, place, wild, resume=True)
    else:
        with monkeypatch.context() as patch:
            interrupt(patch, 3, Stop)
            with pytest.raises(Stop):
                run(mini, splits, place, wild)
        place = place.rename(tmp_path / "moved")
    again = run(mini, splits, place, wild, resume=not damaged)
    assert (again.best_step, again.best_validation_loss) == (whole.best_step, whole.best_validation_loss)
    for key, tensor in weights(whole.folder).items():
        assert torch.equal(weights(again.folder)[key], tensor)


def test_patience_goes_on_where_a_run_was_killed(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after as many validations without a better one as the run in one piece, and so at the same adapter."""
    config = dataclasses.replace(QUICK, eval_every=2, max_steps=20, learning_rate=1e-30, patience=3)
    whole = run(mini, splits, tmp_path / "whole", config)
    assert whole.steps == 8, "nothing gets better than the first of four"
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "killed", config)
    resumed = run(mini, splits, tmp_path / "killed", config, resume=True)
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    assert [row for row in resumed.history if "eval_loss" in row][-1]["step"] == 8


def test_the_time_of_a_run_is_that_of_all_its_pieces(
    mini: LoadedModel, splits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7, Stop)
        with pytest.raises(Stop):
            run(mini, splits, tmp_path / "run", LONGER)
    checkpoint = tmp_path / "run" / "checkpoint-6"
    before = read_elapsed(checkpoint)
    assert before > 0
    (checkpoint / "elapsed.json").write_text('{"seconds": 1000}')
    seal_checkpoint(checkpoint)
    assert 1000 < run(mini, splits, tmp_path / "run", LONGER, resume=True).time_s < 1000 + 60
