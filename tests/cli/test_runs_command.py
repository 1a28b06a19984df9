"""``lorax-vlm runs``: what waits is listed with what is kept of it, and what runs can be stopped."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorax_vlm import make_scene
from lorax_vlm.commands import list_commands
from lorax_vlm.processes import Worker
from lorax_vlm.training.run_list import find_run, list_runs
from lorax_vlm.training.runs import discard_run, held_run, prepare_run
from tests.interruptions_for_tests import interrupt

TRAIN = ("train", "mine", "--style", "concise", "--recipe", "light", "--batch-size", 4, "--eval-every", 2)


def test_what_was_interrupted_is_listed_until_it_is_finished(run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Nothing runs or waits" in run("runs", "list")
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        run(*TRAIN, "--steps", 8, code=130)
    listing = json.loads(run("runs", "list", "--json"))
    [listed] = listing["trainings"]
    assert listing["broken"] == []
    assert (listed["name"], listed["base"], listed["state"]) == ("mine", "blip2-opt-mini", "interrupted")
    assert (listed["step"], listed["steps"], listed["holder"]) == (4, 8, None)
    assert "4 of 8" in run("runs", "list")
    shown = run("runs", "show", "mine")
    assert "state: interrupted" in shown
    assert "max_steps: 8" in shown
    assert json.loads(run("runs", "show", "mine", "--json"))["settings"]["mine"]["base"] == "blip2-opt-mini"
    assert "is not running; it is interrupted" in run("runs", "stop", "mine", code=2)
    assert "No run or command 'other'" in run("runs", "show", "other", code=2)
    run(*TRAIN, "--steps", 8, "--resume")
    assert json.loads(run("runs", "list", "--json")) == {"trainings": [], "commands": [], "broken": []}


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
    assert state.holder is not None
    assert (state.holder.process, state.holder.host) == (process.pid, socket.gethostname())
    assert (state.name, state.state, state.step, state.steps) == ("mine", "running", 0, 3)
    process.kill()
    process.wait()
    process.stdout.close()
    [state], _ = list_runs(tmp_path)
    assert (state.holder, state.state) == (None, "interrupted")
    with held_run(folder):
        assert list_runs(tmp_path)[0][0].holder == Worker.this()


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
def test_a_run_is_stopped_and_waits(run, isolated_home: Path, by: str) -> None:
    command = [sys.executable, "-m", "lorax_vlm", *map(str, TRAIN), "--steps", "2000"]
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
    assert (left.state, left.steps) == ("interrupted", 2000)


# --- commands that were given -----------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images in a folder, in the folder where commands are given."""
    place = tmp_path / "place"
    (place / "photos").mkdir(parents=True)
    for seed in range(4):
        make_scene(seed).image.save(place / "photos" / f"{seed}.png")
    monkeypatch.chdir(place)
    return place / "photos"


def test_a_bulk_job_is_listed_shown_and_given_again(run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("caption", "photos", "--prefix", "-x, ", "--max-new-tokens", 7)
    assert "Nothing runs or waits" in run("runs", "list")
    listing = json.loads(run("runs", "list", "--all", "--json"))
    [command] = listing["commands"]
    assert (command["name"], command["about"], command["state"]) == ("caption", "photos", "finished")
    assert (command["done"], command["total"], command["exit_code"]) == (4, 4, 0)
    assert command["values"] == {"images": ["photos"], "prefix": "-x, ", "max_new_tokens": 7}
    assert "4 of 4" in run("runs", "list", "--all")
    said = run("runs", "show", "photos", "--as", "command")
    assert shlex.split(said) == ["lorax-vlm", "caption", "photos", "--prefix=-x, ", "--max-new-tokens", "7"]
    file = photos.parent / "job.yaml"
    file.write_text(run("runs", "show", command["id"], "--as", "yaml"))
    assert "4 of them done" in run("caption", "--config", "job.yaml", "--dry-run"), "it is the very same job"
    make_scene(9).image.save(photos / "new.png")
    monkeypatch.chdir(photos.parent.parent)
    assert "1 text about 1 image" in run("runs", "resume", "photos")
    assert (photos / "new.txt").read_text().startswith("-x, ")
    assert len(json.loads(run("runs", "list", "--all", "--json"))["commands"]) == 1, "the same command again"


def test_what_failed_or_was_killed_is_listed(run, photos: Path, isolated_home: Path) -> None:
    (photos / "odd.png").write_bytes(b"no image")
    run("caption", "photos", "--strict", code=1)
    [failed] = list_commands(isolated_home / "commands")[0]
    assert (failed.state, failed.exit_code) == ("failed", 1)
    assert "failed" in run("runs", "list")
    record = isolated_home / "commands" / f"{failed.id}.json"
    killed = {**json.loads(record.read_text()), "exit_code": None, "process": 2**22 - 3}
    record.write_text(json.dumps(killed))
    assert json.loads(run("runs", "list", "--json"))["commands"][0]["state"] == "interrupted"
    assert "is not running; it is interrupted" in run("runs", "stop", "photos", code=2)
    reused = {**killed, "process": os.getpid(), "process_began": 5.0}
    record.write_text(json.dumps(reused))
    assert json.loads(run("runs", "list", "--json"))["commands"][0]["state"] == "interrupted", "another process now"
    record.write_text("{")
    assert "broken" in run("runs", "list")
    assert "No run or command" in run("runs", "show", "photos", code=2)


def test_two_commands_about_one_folder_are_told_apart_by_their_ids(run, photos: Path) -> None:
    run("caption", "photos")
    run("caption", "photos", "--write", "csv")
    ids = {command["id"] for command in json.loads(run("runs", "list", "--all", "--json"))["commands"]}
    assert len(ids) == 2
    said = run("runs", "resume", "photos", code=2)
    assert all(id_ in said for id_ in ids)
    assert "csv" in run("runs", "show", "photos", "--as", "command"), "the last one"
    run("runs", "show", ids.pop())


def test_of_several_commands_the_one_is_meant_that_can_be_resumed_or_stopped(
    run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorax_vlm.bulk.job import BulkJob

    run("caption", "photos")
    with monkeypatch.context() as patch:
        patch.setattr(BulkJob, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run("caption", "photos", "--write", "csv", code=130)
    run("caption", "photos", "--write", "jsonl")
    assert "--write csv" in run("runs", "resume", "photos")
    assert (photos / "captions.csv").exists()


def test_an_interrupted_training_is_resumed_as_it_was_given(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        run(*TRAIN, "--steps", 8, code=130)
    listing = json.loads(run("runs", "list", "--json"))
    assert (len(listing["trainings"]), listing["commands"]) == (1, []), "it is one thing"
    assert "lorax-vlm train mine --style concise" in run("runs", "show", "mine", "--as", "command")
    monkeypatch.chdir(tmp_path)
    assert "mine --style concise --recipe light --steps 8" in run("runs", "resume", "mine").replace("\n", " ")
    assert json.loads(run("runs", "list", "--json"))["trainings"] == []


def test_a_list_on_standard_input_cannot_be_given_again(run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "\n".join(map(str, sorted(photos.glob("*.png"))))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names.encode())))
    run("caption", "-")
    assert "standard input" in run("runs", "resume", "-", code=2)
