"""A run's folder: held by one, continued from what is whole, and never mixed up with another's."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lorax_vlm.errors import NothingToResume, PathError, RunInUse, TrainingError
from lorax_vlm.training.runs import RUN_FILE, Run, TrainingResult, held_run, is_complete, prepare_run, seal_checkpoint

HOLD = """
import sys, time
from pathlib import Path
from lorax_vlm.training.runs import held_run
with held_run(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_another_process_is_kept_out_by_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunInUse, match=f"is being trained by process {holder.pid}"), held_run(tmp_path / "run"):
            pytest.fail("it is held")
        holder.kill()
    with held_run(tmp_path / "run"):
        pass


def test_another_thread_is_kept_out_and_the_same_one_is_not(tmp_path: Path) -> None:
    caught: list[Exception] = []

    def try_to_hold() -> None:
        try:
            with held_run(tmp_path):
                pass
        except RunInUse as error:
            caught.append(error)

    with held_run(tmp_path), held_run(tmp_path):
        thread = threading.Thread(target=try_to_hold)
        thread.start()
        thread.join()
        assert str(os.getpid()) in str(caught[0])
    try_to_hold()
    assert len(caught) == 1


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="Not a directory"), held_run(tmp_path / "file" / "run"):
        pytest.fail("it cannot be held")


def checkpoint(run_dir: Path, step: int) -> Path:
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("optimizer.pt", "adapter_model.safetensors", "trainer_state.json"):
        (folder / name).write_text(f"{name} of step {step}")
    seal_checkpoint(folder)
    return folder


@pytest.mark.parametrize("file", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json", "complete.json"])
@pytest.mark.parametrize("damage", ["shorter", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, caplog, file: str, damage: str) -> None:
    prepare_run(tmp_path, {"rank": 4}, resume=False)
    before, last = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    assert prepare_run(tmp_path, {"rank": 4}, resume=True).checkpoint == last
    path = last / file
    data = path.read_bytes()
    if damage == "shorter":
        path.write_bytes(data[:-3])
    elif damage == "flipped":
        path.write_bytes(data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    else:
        path.unlink()
    assert not is_complete(last)
    assert prepare_run(tmp_path, {"rank": 4}, resume=True).checkpoint == before
    assert "damaged and passed over" in caplog.text
    assert not last.exists()


def test_other_settings_are_listed_one_by_one(tmp_path: Path) -> None:
    started = {"data": {"sha256": "a", "train": 5}, "config": {"seed": 0, "rate": 1.0}, "labels": ["x"]}
    prepare_run(tmp_path, started, resume=False)
    checkpoint(tmp_path, 2)
    assert prepare_run(tmp_path, started, resume=True).settings == started
    now = {"data": {"sha256": "b", "train": 5}, "config": {"seed": 1, "rate": 1.0}, "labels": ["x"]}
    with pytest.raises(TrainingError) as caught:
        prepare_run(tmp_path, now, resume=True)
    assert [line.strip() for line in str(caught.value).splitlines()[1:3]] == [
        "data.sha256: started with a, now b",
        "config.seed: started with 0, now 1",
    ]


def test_a_new_run_forgets_the_former_ones_results(tmp_path: Path) -> None:
    """Else a run killed at its very beginning would end, when continued, with the former one's adapter."""
    run = prepare_run(tmp_path, {}, resume=False)
    record = json.loads((tmp_path / RUN_FILE).read_text())
    (tmp_path / RUN_FILE).write_text(json.dumps(record | {"results": {"old": {}}}))
    assert isinstance(run, Run)
    prepare_run(tmp_path, {}, resume=False)
    with pytest.raises(NothingToResume):
        prepare_run(tmp_path, {}, resume=True)


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    prepare_run(tmp_path, {}, resume=False)
    (tmp_path / RUN_FILE).write_text('{"settings": ')
    with pytest.raises(TrainingError, match=r"run\.json cannot be read"):
        prepare_run(tmp_path, {}, resume=True)


@pytest.mark.parametrize(
    ("losses", "best", "falling"),
    [
        ([2.0, 1.0, 0.9], 3, True),
        ([2.0, 1.0, 0.96], 3, False),
        ([2.0, 0.9, 1.0], 2, False),
        ([2.0], 1, True),
        ([2.9], 1, False),
        ([], 0, False),
    ],
)
def test_a_loss_that_still_falls_is_told_from_one_that_does_not(
    losses: list[float], best: int, falling: bool, tmp_path: Path
) -> None:
    """The last measurement is the best, and at least a twentieth below the one before, or 3.0 before the first step."""
    history = [{"step": step, "eval_loss": loss} for step, loss in enumerate(losses, start=1)]
    result = TrainingResult(tmp_path, tmp_path, len(losses), best, 0.0, 3.0, 1.0, 1, history)
    assert result.still_falling is falling
    assert result.record()["still_falling"] is falling


@pytest.mark.parametrize(
    ("points", "falling"),
    [
        ([(50, 2.55), (60, 2.50)], True),  # a fiftieth in a fifth of the interval
        ([(50, 2.55), (60, 2.54)], False),
        ([(50, 2.55), (100, 2.50)], False),
    ],
)
def test_a_short_last_interval_counts_in_proportion(
    points: list[tuple[int, float]], falling: bool, tmp_path: Path
) -> None:
    history = [{"step": step, "eval_loss": loss} for step, loss in points]
    last = points[-1][0]
    assert TrainingResult(tmp_path, tmp_path, last, last, 0.0, 3.0, 1.0, 1, history).still_falling is falling
