"""A script of the front doors within the process of the tests, which has its libraries imported already."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripts_for_tests import ROOT


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a script of the repository's root in ``tmp_path``, as ``run_script`` does in a process of its own."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [script, *map(str, arguments)]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", command)
        code: object = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        printed = capsys.readouterr()
        said = f"{printed.err}{code}\n" if isinstance(code, str) else printed.err
        return subprocess.CompletedProcess(command, code if isinstance(code, int) else 1, printed.out, said)

    return run
