"""Every benchmark runs, each in a process of its own; with ``--smoke`` in seconds, and to figures that say nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HELPERS = ("__init__", "options", "random_checkpoints")
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in HELPERS)
MORE = {"golden": ["--write", "golden.json"], "growth": ["--plot", "growth.png"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    environment = dict(os.environ, LORAX_VLM_HOME=str(tmp_path / "home"), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", *MORE.get(name, [])]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
