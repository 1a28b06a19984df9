"""The scripts of the front doors, run as a person runs them."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def _run(script: str, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(__file__).parents[2] / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "LORAX_VLM_HOME": str(cwd / "home"), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture
def captioning_script(tmp_path: Path) -> Run:
    """Runs ``blip2_captioning.py`` with the given arguments in an empty folder."""
    return partial(_run, "blip2_captioning.py", tmp_path)


@pytest.fixture
def vqa_script(tmp_path: Path) -> Run:
    """Runs ``vqa_system.py`` with the given arguments in an empty folder."""
    return partial(_run, "vqa_system.py", tmp_path)
