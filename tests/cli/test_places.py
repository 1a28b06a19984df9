"""Places that cannot be written or read, and rows that fail: found before the work where that is possible."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorax_vlm.cli.main import main
from lorax_vlm.data.scenes import Scene


@pytest.fixture
def picture(tmp_path: Path, scenes: list[Scene]) -> Path:
    scenes[0].image.save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


PLACES = [
    ("evaluate --task general --count 2 --html {file}/r.html", "file"),
    ("evaluate --task general --count 2 --html {folder}", "it is a folder"),
    ("caption {picture} --sheet {file}/s.png", "file"),
    ("caption {picture} --sheet {folder}", "it is a folder"),
    ("train x --style plain --steps 1 --store {file}", "file"),
    ("train x --style plain --steps 1 --store {file}/store", "file"),
    ("adapters list --store {file}", "file"),
    ("adapters pack one {folder}", "it is a folder"),
    ("scenes export {file} --count 1", "it is a file"),
    ("scenes export {file}/d --count 1", "file"),
    ("caption {picture} --sheet /proc/none/s.png", "/proc/none"),
]


@pytest.mark.parametrize(("command", "reason"), PLACES, ids=[command for command, _ in PLACES])
def test_a_place_that_cannot_be_used_is_one_message(
    run, command: str, reason: str, picture: Path, file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if "pack" in command:
        request.getfixturevalue("stored")
    (tmp_path / "folder").mkdir()
    before = sorted(path.name for path in tmp_path.rglob("*") if "home" not in path.parts)
    names = {"file": file, "folder": tmp_path / "folder", "picture": picture}
    said = run(*(part.format(**names) for part in command.split()), code=1)
    assert reason in said
    assert "PathError" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.rglob("*") if "home" not in path.parts) == before


def test_a_broken_file_of_several_fails_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    """The caption of the other one is printed, with the name of its image."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = [tmp_path / "gone.png", picture, tmp_path / "broken.png"]
    monkeypatch.setattr(sys, "argv", ["lorax-vlm", "caption", *map(str, asked)])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert [line for line in printed.out.splitlines() if str(picture) in line]
    assert "base" in printed.out
    gone, broken = printed.err.splitlines()
    assert "gone.png': no such file" in gone
    assert "broken.png': it is not an image" in broken


def test_nothing_is_printed_when_all_are_broken(run, tmp_path: Path) -> None:
    assert "gone.png': no such file" in run("caption", tmp_path / "gone.png", tmp_path / "other.png", code=1)


LONG = [
    "caption {long}",
    "caption {picture} -m {long}",
    "caption {picture} -a {long}",
    "caption {picture} --sheet {long}.png",
    "ask {long} question",
    "evaluate --data {long}",
    "evaluate --task general --html {long}",
    "train x --data {long}",
    "train --adapters {long}",
    "train x --style plain --steps 1 --store {long}",
    "doctor --data {long}",
    "doctor -m {long}",
    "adapters export one {long}",
    "adapters pack one {long}",
    "adapters import {long} --name x",
    "adapters unpack {long}",
    "adapters check {long}",
    "adapters inspect ./{long}",
    "adapters sign one --key {long}",
    "exchange plan one --to {long}",
    "exchange fold {long} out --model blip2-opt-mini",
    "models fingerprint {long}",
    "scenes export {long} --count 1",
]


@pytest.mark.parametrize("command", LONG)
def test_a_name_that_the_system_refuses_is_one_message(
    command: str, picture: Path, stored, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"long": "n" * 5000, "picture": picture}
    monkeypatch.setattr(sys, "argv", ["lorax-vlm", *(part.format(**names) for part in command.split())])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["sign", "verify-signature"])
def test_a_device_is_no_key(run, stored, command: str) -> None:
    pytest.importorskip("model_signing")
    assert "is no key" in run("adapters", command, "one", "--key", "/dev/zero", code=1)


def test_a_program_that_is_started_without_input_or_output(tmp_path: Path) -> None:
    """As by a daemon. The command is a process of its own: within one the streams are the tests'."""
    environment = dict(os.environ, LORAX_VLM_HOME=str(tmp_path))
    for command in ("models list >&-", "models list >&- 2>&- <&-", "adapters list <&-", "adapters list --json >&-"):
        done = subprocess.run(
            f"{sys.executable} -m lorax_vlm {command}",
            shell=True,
            check=False,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, ""), command


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    "command",
    [
        "caption {picture} --sheet {picture}",
        "caption {picture} --sheet {notes}",
        "evaluate --task general --count 2 --html {notes}",
        "adapters matrix --png {picture}",
    ],
)
def test_nobodys_file_is_written_over(run: Callable[..., str], command: str, picture: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = picture.read_bytes(), notes.read_bytes()
    printed = run(*command.format(picture=picture, notes=notes).split(), code=1)
    assert "there is a file already that lorax-vlm did not write. Name a new file" in printed
    assert (picture.read_bytes(), notes.read_bytes()) == before


@pytest.mark.parametrize("name", ["s.png", "s.pdf", "s.svg", "s.jpg", "page.html"])
def test_what_was_written_here_is_written_over(
    run: Callable[..., str], picture: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "out" / name
    command = (
        ["evaluate", "--task", "general", "--count", "2", "--html", target]
        if name.endswith("html")
        else ["caption", picture, "--sheet", target]
    )
    for _ in range(2):
        assert f"Wrote {target}" in run(*command)


@pytest.mark.slow
def test_a_page_that_does_not_fit_on_the_disk_leaves_the_former_one(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 8 kB."""
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "lorax_vlm", "evaluate", "--task", "general", "--count", "2", "--html", str(page)]
    environment = dict(os.environ, LORAX_VLM_HOME=str(tmp_path / "home"))
    assert subprocess.run(command, check=False, env=environment, capture_output=True).returncode == 0
    before = page.read_bytes()
    limited = ["bash", "-c", f"ulimit -f 8; trap '' XFSZ; exec {' '.join(command)}"]
    failed = subprocess.run(limited, check=False, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "page.html" in failed.stderr
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("home", "page.html")] == []
