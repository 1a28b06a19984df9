"""Files that appear whole or not at all, and what killed writers leave."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lorax_vlm.adapters.durable import own_folder
from lorax_vlm.paths import abandoned, written_whole

KILLED = """
import os, signal, sys
from pathlib import Path
from lorax_vlm.adapters.durable import own_folder
from lorax_vlm.paths import written_whole
place = Path(sys.argv[1])
with own_folder(place) as folder, written_whole(place / "page.html") as file:
    (folder / "half").write_text("half")
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_writer_still_writes_is_left_to_it_however_long_that_takes(tmp_path: Path) -> None:
    with own_folder(tmp_path) as folder, written_whole(tmp_path / "page.html") as file:
        file.write(b"half")
        file.flush()
        for path in tmp_path.glob(".writing-*"):
            os.utime(path, (0, 0))
        assert list(abandoned(tmp_path)) == []
        with own_folder(tmp_path), written_whole(tmp_path / "other.html"):
            pass
        (folder / "more").write_text("more")
    assert (tmp_path / "page.html").read_text() == "half"
    assert list(tmp_path.glob(".writing-*")) == []


@pytest.mark.parametrize("next_one", ["file", "folder"])
def test_what_killed_writers_left_is_removed_by_the_next_one_of_the_folder(tmp_path: Path, next_one: str) -> None:
    (tmp_path / "page.html").write_text("as it was")
    somebodys = [tmp_path / ".writing-a-novel", tmp_path / ".hidden"]
    for path in somebodys:
        path.write_text("mine")
        os.utime(path, (0, 0))
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert killed.returncode == -signal.SIGKILL
    left = sorted(set(tmp_path.glob(".writing-*")) - {*somebodys})
    assert len(left) == 4
    for path in left[:3]:
        os.utime(path, (0, 0))
    assert sorted(abandoned(tmp_path)) == left[:3]
    assert sorted(abandoned(tmp_path, after_s=0)) == left, "whoever is the only writer need not wait"
    if next_one == "file":
        with written_whole(tmp_path / "other.html") as file:
            file.write(b"whole")
    else:
        with own_folder(tmp_path):
            pass
    assert sorted(set(tmp_path.glob(".writing-*")) - {*somebodys}) == left[3:], "somebody may still be writing there"
    assert all(path.read_text() == "mine" for path in somebodys)
    assert (tmp_path / "page.html").read_text() == "as it was"
