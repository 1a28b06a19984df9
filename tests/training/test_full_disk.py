"""A disk that fills up while a run writes: one readable line, nothing half-written taken for whole, and a way on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorax_vlm.training.runs import is_complete

# A limit for the size of any file stands for a full disk: writes fail in the same places, with the same kind of error.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
import torch
torch.set_num_threads(1)
from lorax_vlm.cli.main import main
main()
"""


def train(tmp_path: Path, limit: int, *options: object) -> subprocess.CompletedProcess[str]:
    command = [
        "train",
        "one",
        "--style",
        "concise",
        "--recipe",
        "light",
        "--batch-size",
        4,
        "--steps",
        6,
        "--eval-every",
        3,
    ]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *map(str, [*command, *options])],
        env={**os.environ, "LORAX_VLM_HOME": str(tmp_path / "home"), "PYTHONWARNINGS": "ignore"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 20_000, 60_000])
def test_a_full_disk_is_said_and_the_run_can_go_on(tmp_path: Path, limit: int) -> None:
    """Too little for the record, for the weights, for the optimiser's state."""
    done = train(tmp_path, limit)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "PathError" in last
    assert "Traceback" not in done.stderr
    (run,) = (tmp_path / "home" / "runs" / "blip2-opt-mini").iterdir()
    assert not any(is_complete(folder) for folder in run.glob("checkpoint-*"))
    again = train(tmp_path, 0)
    assert again.returncode == 0, again.stderr
