"""Records of commands: never in the way of the work that they are of."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lorax_vlm.commands import find_command, list_commands, recorded


def test_a_second_one_does_not_take_the_record_of_the_first(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from lorax_vlm.commands import recorded\n"
        "with recorded(Path(sys.argv[1]), 'caption', {'images': ['a']}, 'a'): print('on', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    with pytest.raises(ValueError, match="locked"), recorded(tmp_path, "caption", {"images": ["a"]}, "a"):
        raise ValueError("locked")
    assert (find_command(tmp_path, "a").state, find_command(tmp_path, "a").process) == ("running", process.pid)
    process.communicate("\n")
    assert find_command(tmp_path, "a").state == "finished"


def test_what_cannot_be_recorded_is_done_all_the_same(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = []
    with recorded(tmp_path / "file" / "commands", "train", {}, "mine") as record:
        record.progress(1, 2)
        done.append(1)
    assert done == [1]
    assert caplog.text.count("is not recorded") == 1


def test_records_of_long_ago_go(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with recorded(tmp_path, "train", {"name": name}, name):
            pass
    [old] = [path for path in tmp_path.glob("*.json") if json.loads(path.read_text())["about"] == "old"]
    os.utime(old, (time.time() - 100 * 86400,) * 2)
    with recorded(tmp_path, "train", {"name": "next"}, "next"):
        pass
    assert {command.about for command in list_commands(tmp_path)[0]} == {"new", "next"}


@pytest.mark.parametrize("code", [1, 2, 130])
def test_the_exit_code_says_what_became_of_it(tmp_path: Path, code: int) -> None:
    class Ends(Exception):
        exit_code = code

    with pytest.raises(Ends), recorded(tmp_path, "train", {}, "mine"):
        raise Ends
    found = find_command(tmp_path, "mine")
    assert (found.exit_code, found.state) == (code, "interrupted" if code == 130 else "failed")
    assert dataclasses.asdict(found)["ended"]
