"""The scripts of the front doors, run as a person runs them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_script(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository's root in ``cwd``, with an empty home for adapters there."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "LORAX_VLM_HOME": str(cwd / "home"), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
