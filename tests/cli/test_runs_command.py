"""``lorax-vlm runs``: what waits is listed with what is kept of it, and what runs can be stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorax_vlm.training.run_list import find_run, list_runs
from lorax_vlm.training.runs import Holder, discard_run, held_run, prepare_run
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
    listing = json.loads(run("runs", "list", "--json"))
    [listed] = listing["runs"]
    assert listing["broken"] == []
    assert (listed["name"], listed["base"], listed["state"]) == ("mine", "blip2-opt-mini", "interrupted")
    assert (listed["step"], listed["steps"], listed["holder"]) == (4, 8, None)
    assert "4 of 8" in run("runs", "list")
    shown = run("runs", "show", "mine")
    assert "state: interrupted" in shown
    assert "max_steps: 8" in shown
    assert json.loads(run("runs", "show", "mine", "--json"))["settings"]["mine"]["base"] == "blip2-opt-mini"
    assert "is not running; it is interrupted" in run("runs", "stop", "mine", code=2)
    assert "NothingToResume" in run("runs", "show", "other", code=1)
    run(*TRAIN, "--steps", 8, "--resume")
    assert json.loads(run("runs", "list", "--json")) == {"runs": [], "broken": []}


def test_runs_of_several_go_by_the_names_of_all(tmp_path: Path) -> None:
    settings = {name: {"config": {"max_steps": steps}} for name, steps in (("a", 3), ("b", 7))}
    prepare_run(tmp_path / "base" / "joint-0123", settings, False, ["a", "b"], joint=True)
    [state], broken = list_runs(tmp_path)
    assert (state.name, state.adapters, state.steps, state.settings, broken) == ("a, b", ("a", "b"), 7, settings, [])
    assert find_run(tmp_path, "b") == find_run(tmp_path, "joint-0123") == state


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", "null", '{"settings": []}', '{"settings": {"config": {"max', '{"settings": {}, "results": {}}'],
)
def test_a_run_that_cannot_be_read_hides_no_other(run, isolated_home: Path, record: str) -> None:
    runs = isolated_home / "runs"
    prepare_run(runs / "base" / "sound-01234567", {"config": {"max_steps": 3}}, False, ["sound"])
    (runs / "base" / "odd-01234567").mkdir()
    (runs / "base" / "odd-01234567" / "run.json").write_text(record)
    [state], [broken] = list_runs(runs)
    assert (state.name, broken.folder.name) == ("sound", "odd-01234567")
    assert "cannot be read" in run("runs", "list")
    assert "0 of 3" in run("runs", "list")
    assert "interrupted" in run("runs", "show", "sound")
    assert "run.json cannot be read" in run("runs", "show", "odd", code=1)


def test_a_run_that_is_stored_while_it_is_looked_at_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_run(tmp_path / "base" / "sound-01234567", {}, False, ["sound"])
    monkeypatch.setattr("lorax_vlm.training.run_list.complete_checkpoints", lambda folder: discard_run(folder) or [])
    assert list_runs(tmp_path) == ([], [])


def test_who_holds_a_run_is_said_and_who_has_died_holds_none(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "mine-01234567"
    folder.mkdir(parents=True)
    prepare_run(folder, {"config": {"max_steps": 3}}, False, ["mine"])
    hold = (
        "import sys, time; from pathlib import Path; from lorax_vlm.training.runs import held_run\n"
        "with held_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    [state], _ = list_runs(tmp_path)
    assert state.holder == Holder(process.pid, socket.gethostname())
    assert (state.name, state.state, state.step, state.steps) == ("mine", "running", 0, 3)
    process.kill()
    process.wait()
    process.stdout.close()
    [state], _ = list_runs(tmp_path)
    assert (state.holder, state.state) == (None, "interrupted")
    with held_run(folder):
        assert list_runs(tmp_path)[0][0].holder == Holder(os.getpid(), socket.gethostname())


def test_a_run_that_goes_on_is_not_called_stopped(run, isolated_home: Path) -> None:
    """What a shell's script puts into the background ignores interrupts."""
    folder = isolated_home / "runs" / "base" / "deaf-01234567"
    prepare_run(folder, {"config": {"max_steps": 3}}, False, ["deaf"])
    hold = (
        "import signal, sys, time; from pathlib import Path; from lorax_vlm.training.runs import held_run\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with held_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    said = run("runs", "stop", "deaf", "--wait", 0.3, code=1)
    assert f"kill {process.pid} ends it" in said
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["runs stop", "kill"])
def test_a_run_is_stopped_and_gone_on_with(run, isolated_home: Path, by: str) -> None:
    command = [sys.executable, "-m", "lorax_vlm", *map(str, TRAIN), "--steps", "60"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not any(state.step >= 2 for state in list_runs(isolated_home / "runs")[0]):
        assert process.poll() is None
        time.sleep(0.2)
    if by == "kill":
        process.terminate()
    else:
        assert f"process {process.pid} on" in run("runs", "stop", "mine")
    assert "Continue from the last checkpoint with --resume" in process.stderr.read()
    process.stderr.close()
    assert process.wait() in (130, -signal.SIGINT)
    [left], _ = list_runs(isolated_home / "runs")
    assert (left.state, left.steps) == ("interrupted", 60)
    run(*TRAIN, "--steps", 60, "--resume")
    assert list_runs(isolated_home / "runs") == ([], [])
