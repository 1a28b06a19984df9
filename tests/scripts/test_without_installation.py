"""The scripts need the packages of ``requirements_blip2.txt`` and nothing else: the package itself is not installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def required() -> set[str]:
    """The packages of the requirement file with all that they need here."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements_blip2.txt").read_text().splitlines())
    todo = [Requirement(line) for line in lines if line and not line.startswith("-")]
    found: dict[str, set[str]] = {}
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | wanted.extras
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *found[name])]
            if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                todo.append(needed)
    return set(found)


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with what the requirement file asks for, and nothing else."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    here = Path(sysconfig.get_paths()["purelib"])
    for name in required():
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top != ".." and not (site / top).is_symlink() and (here / top).exists():
                (site / top).symlink_to(here / top)
    return folder / "bin" / "python"


def run(python: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["LORAX_VLM_HOME"] = str(cwd / "home")
    return subprocess.run(
        [python, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_the_package_is_not_installed_there(fresh_python: Path, tmp_path: Path) -> None:
    looked_for = {"torch", "lorax-vlm", "pytest", "hypothesis"}
    code = f"import importlib.metadata as m; print({{d.name.lower() for d in m.distributions()}} & {looked_for!r})"
    assert run(fresh_python, "-c", code, cwd=tmp_path).stdout == "{'torch'}\n"


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
