"""Imports point one way only, function-level ones included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lorax_vlm"

# Highest first; rooms on one level never import each other.
LEVELS = (
    ("blip2_captioning", "vqa_system", "multimodal_exchange", "__main__"),
    ("cli",),
    ("captioning", "vqa", "multimodal"),
    ("workspace",),
    ("bulk", "curation"),
    ("reports",),
    ("exchange",),
    ("measuring",),
    ("workshop",),
    ("training", "runtime", "evaluation", "sharing"),
    ("asking",),
    ("adapters",),
    ("models", "data"),
    ("skills",),
    ("requests",),
    ("commands",),
    ("types", "settings", "answers", "versions", "paths", "fetching", "processes"),
    ("errors",),
    ("foreign",),
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "matplotlib", "bitsandbytes"}


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def package_files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    for module in imported_modules(path):
        if not module.startswith("lorax_vlm."):
            continue
        target = module.split(".")[1]
        assert target == room or LEVEL_OF[target] > LEVEL_OF[room], f"{room} imports {module}"


def test_the_levels_name_every_room() -> None:
    assert {room_of(path) for path in package_files()} <= set(LEVEL_OF)


def test_root_scripts_use_public_names_only() -> None:
    for path in ROOT.glob("*.py"):
        internal = {name for name in imported_modules(path) if name.startswith("lorax_vlm.")}
        assert not internal, f"{path.name} imports {internal}"


def says_no_torch(path: Path) -> bool:
    """Whether a file promises it in its own words: such serve ``--help`` and everything that loads no base."""
    return "No torch." in (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


LIGHT = [path for path in package_files() if says_no_torch(path)]


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_says_no_torch_imports_nothing_heavy(path: Path) -> None:
    """Neither itself nor by way of another file of the package."""
    modules = imported_modules(path, top_level_only=True)
    assert not {module.split(".")[0] for module in modules} & HEAVY
    for module in modules:
        other = PACKAGE / (module.removeprefix("lorax_vlm.").replace(".", "/") + ".py")
        if module.startswith("lorax_vlm.") and other.is_file():
            assert other in LIGHT, f"{other.relative_to(PACKAGE)} does not say that it does without"


def test_there_are_light_files() -> None:
    assert len(LIGHT) > 70


def test_from_pretrained_of_a_base_is_called_in_one_file_only() -> None:
    of_a_base = re.compile(r"(model_class|ForConditionalGeneration|ForQuestionAnswering)\.from_pretrained\(")
    callers = {
        str(path.relative_to(PACKAGE)) for path in package_files() if of_a_base.search(path.read_text(encoding="utf-8"))
    }
    assert callers == {"models/loading.py"}


def test_environment_is_read_in_settings_only() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in package_files()
        if "os.environ" in path.read_text(encoding="utf-8") or "getenv" in path.read_text(encoding="utf-8")
    }
    assert readers == {"settings.py"}


def test_subpackage_init_files_are_empty() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path != PACKAGE / "__init__.py":
            assert not path.read_text(encoding="utf-8").strip(), path


LONGEST = 400


def test_sizes() -> None:
    for path in [*package_files(), *ROOT.glob("recipes/*.py"), *ROOT.glob("benchmarks/*.py")]:
        if path.stem != "retention":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, path
    for path in ROOT.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 80, path
    assert len((PACKAGE / "workspace.py").read_text(encoding="utf-8").splitlines()) <= 300


# More parameters than seven, and why.
MANY = {
    "_attend": "the signature is transformers'",
    "evaluate": "what is asked, who, and how; all but two are given by name",
    "benchmark_models": "what is asked, who, and how; all but two are given by name",
}


def test_functions_are_short_and_take_few_parameters() -> None:
    """Outside the command line, whose options are parameters: 50 lines below the docstring, 7 parameters."""
    seen: set[str] = set()
    for path in package_files():
        if room_of(path) == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                told = first.end_lineno or 0 if ast.get_docstring(node) is not None else node.lineno
                where = f"{path.relative_to(PACKAGE)}:{node.name}"
                assert (node.end_lineno or 0) - told <= 50, where
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                if sum(one.arg not in ("self", "cls") for one in given) > 7:
                    seen.add(node.name)
                    assert node.name in MANY, where
    assert seen == set(MANY)
