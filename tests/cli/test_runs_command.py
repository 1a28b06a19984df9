"""``lorax-vlm runs``: what waits is listed with what is kept of it, and what runs can be stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorax_vlm.training.run_list import list_runs
from lorax_vlm.training.runs import held_run
from lorax_vlm.training.trainer import AdapterTrainer

TRAIN = ("train", "mine", "--style", "concise", "--recipe", "light", "--batch-size", 4, "--eval-every", 2)


def test_what_was_interrupted_is_listed_until_it_is_finished(run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No run is under way" in run("runs", "list")
    original = AdapterTrainer.training_step

    def stop(self, *given, **named):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", stop)
        run(*TRAIN, "--steps", 8, code=130)
    [listed] = json.loads(run("runs", "list", "--json"))
    assert (listed["name"], listed["base"], listed["state"]) == ("mine", "blip2-opt-mini", "interrupted")
    assert (listed["step"], listed["steps"], listed["held_by"]) == (4, 8, "")
    assert "4 of 8" in run("runs", "list")
    shown = run("runs", "show", "mine")
    assert "state: interrupted" in shown
    assert "max_steps: 8" in shown
    assert json.loads(run("runs", "show", "mine", "--json"))["settings"]["base"] == "blip2-opt-mini"
    assert "is not running; it is interrupted" in run("runs", "stop", "mine", code=2)
    assert "NothingToResume" in run("runs", "show", "other", code=1)
    run(*TRAIN, "--steps", 8, "--resume")
    assert json.loads(run("runs", "list", "--json")) == []


def test_who_holds_a_run_is_said_and_who_has_died_holds_none(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "mine-01234567"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": {"config": {"max_steps": 3}}, "results": {}}))
    hold = (
        "import sys, time; from pathlib import Path; from lorax_vlm.training.runs import held_run\n"
        "with held_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    [state] = list_runs(tmp_path)
    assert state.held_by.startswith(f"process {process.pid} on ")
    assert (state.name, state.state, state.step, state.steps) == ("mine", "running", 0, 3)
    process.kill()
    process.wait()
    process.stdout.close()
    [state] = list_runs(tmp_path)
    assert (state.held_by, state.state) == ("", "interrupted")
    with held_run(folder):
        assert next(list_runs(tmp_path)).held_by.startswith(f"process {os.getpid()} on ")


@pytest.mark.slow
def test_a_run_is_stopped_and_gone_on_with(run, isolated_home: Path) -> None:
    command = [sys.executable, "-m", "lorax_vlm", *map(str, TRAIN), "--steps", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not any(state.step >= 2 for state in list_runs(isolated_home / "runs")):
        assert process.poll() is None
        time.sleep(0.2)
    assert f"process {process.pid} on" in run("runs", "stop", "mine")
    assert "Continue from the last checkpoint with --resume" in process.stderr.read()
    process.stderr.close()
    assert process.wait() in (130, -signal.SIGINT)
    [left] = list_runs(isolated_home / "runs")
    assert (left.state, left.steps) == ("interrupted", 60)
    run(*TRAIN, "--steps", 60, "--resume")
    assert list(list_runs(isolated_home / "runs")) == []
