"""What importing costs, and what the package exports."""

import importlib
import subprocess
import sys

import pytest

import lorax_vlm

HEAVY = ("torch", "transformers", "peft", "matplotlib")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        "import lorax_vlm",
        "from lorax_vlm import AdapterStore, list_models, TrainConfig, LoraxError; AdapterStore('x').list()",
        "import lorax_vlm.cli.main",
        "import lorax_vlm.adapters.compatibility",
    ],
)
def test_light_entries_do_not_import_torch(code: str) -> None:
    assert loaded_after(code) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["adapters", "list"], ["models", "list"], ["train", "--help"]])
def test_light_commands_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        f"sys.argv = ['lorax-vlm', *{arguments}]\n"
        "from lorax_vlm.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert loaded_after(code) == set()


def test_every_export_resolves_and_is_documented() -> None:
    assert len(lorax_vlm.__all__) <= 30
    assert sorted(lorax_vlm.__all__) == sorted(lorax_vlm._HOMES)
    for name in lorax_vlm.__all__:
        assert getattr(lorax_vlm, name).__doc__


def test_unknown_export_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lorax_vlm.nothing  # noqa: B018


def test_every_error_is_in_the_tree_and_derives_from_a_builtin() -> None:
    errors = importlib.import_module("lorax_vlm.errors")
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.LoraxError)]
    for error in classes:
        assert error.__name__ in (errors.__doc__ or "")
