"""The scripts need the packages of ``requirements_blip2.txt`` and nothing else: the package itself is not installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with everything that is installed here but this package and what only tests need."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if "lorax" not in entry.name.lower():
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["LORAX_VLM_HOME"] = str(cwd / "home")
    return subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_package_is_not_installed_there(fresh_python: Path, tmp_path: Path) -> None:
    done = run(fresh_python, "-c", "import torch, importlib.metadata as m; m.version('lorax-vlm')", cwd=tmp_path)
    assert "PackageNotFoundError" in done.stderr


def test_the_first_script_runs_from_a_clone(fresh_python: Path, tmp_path: Path) -> None:
    script = ROOT / "blip2_captioning.py"
    done = run(fresh_python, script, "--steps", 2, "--styles", "concise", "--recipe", "light", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "concise_captions" in done.stdout


def test_the_version_is_written_once() -> None:
    from lorax_vlm import __version__

    assert f'__version__ = "{__version__}"' in (ROOT / "lorax_vlm" / "__init__.py").read_text(encoding="utf-8")
    assert __version__ not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    done = run(Path(sys.executable), "-m", "lorax_vlm", "--version", cwd=ROOT)
    assert done.stdout == f"lorax-vlm {__version__}\n"
