"""What the documents say is what the program does."""

import re
from pathlib import Path

import pytest

from docs import write_architecture, write_console
from docs.write_cli_reference import PATH, render
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.models.catalog import MINIS_DIR

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_command_reference_is_fresh() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run: make docs"


def test_the_picture_of_the_rooms_is_fresh() -> None:
    page = write_architecture.PAGE.read_text(encoding="utf-8")
    assert page == write_architecture.render(page), "run: make docs"


def test_files_and_pictures_named_in_documents_exist() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)", README)) <= set(targets)


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in README
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """In three training steps instead of three hundred, so only the base's line must be the printed one."""
    import dataclasses

    from lorax_vlm.training.config import MINI_CAPTION_CONFIGS

    block, output = re.findall(r"```(?:python|text)\n(.*?)```", README, flags=re.DOTALL)[:2]
    assert len(block.strip().splitlines()) <= 8
    few = dataclasses.replace(MINI_CAPTION_CONFIGS["blip2-opt-mini"], max_steps=3, eval_every=3)
    monkeypatch.setitem(MINI_CAPTION_CONFIGS, "blip2-opt-mini", few)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    shown = output.strip().splitlines()
    base = next(line for line in shown if line.startswith("base"))
    assert base in printed
    assert [line.split(":")[0] for line in shown] == [line.split(":")[0] for line in printed if ": " in line][
        -len(shown) :
    ]
    scene = make_scene(2_000_000_131)
    assert shown[-1] == f"detailed_captions: {scene.caption('detailed')}"


def test_figures_in_the_readme_are_those_of_the_model_card() -> None:
    card = (MINIS_DIR / "blip2-opt-mini" / "README.md").read_text(encoding="utf-8")
    share = re.search(r"All base skills together[^*]*\*\*([0-9.]+%)\*\*", card)
    assert share is not None
    assert share[1] in README


def test_nothing_binary_but_checkpoints_and_pictures() -> None:
    allowed = {".safetensors", ".png"}
    for path in (p for p in ROOT.rglob("*") if p.is_file()):
        parts = path.relative_to(ROOT).parts
        if parts[0] in (".git", ".venv", "build", "runs") or "__pycache__" in parts or ".egg-info" in str(path):
            continue
        if any((part.startswith(".") and part.endswith("_cache")) or part == ".hypothesis" for part in parts):
            continue
        if b"\0" in path.read_bytes()[:4096]:
            assert path.suffix in allowed, path


NO_OUTPUT = ("lorax-vlm ", "pip ", "git ", "python ", "torchrun ", "<store>", "shapes/")


def test_output_that_is_quoted_says_what_printed_it() -> None:
    """What is neither a command, nor code, nor a file's layout, is a block that ``make console`` writes."""
    for path in write_console.DOCUMENTS:
        page = path.read_text(encoding="utf-8")
        known = [block.text for block in write_console.blocks(page)]
        for language, text in re.findall(r"```([a-z]*)\n(.*?)```", page, flags=re.DOTALL):
            if not language and not text.startswith(NO_OUTPUT):
                assert text in known, f"{path.name}: {text[:80]}"


def test_quoted_output_is_written_anew_and_nothing_else() -> None:
    one, two = "<!-- printed by: one -->\n```\n", '<!-- printed by: two from "x" lines 1 3 -->\n```text\n'
    printed = {"one": "1 \n2\n\n", "two": "0\nx 1\nx 2\nx 3\n\nlast\n"}
    former, new = (
        f"a\n{one}{first}```\nb\n{two}{second}```\n```\nkept\n```\n"
        for first, second in (("old\n", ""), ("1\n2\n", "x 1\nx 3\n"))
    )
    assert write_console.render(former, printed.__getitem__) == new
    with pytest.raises(ValueError, match="no line begins with 'x'"):
        write_console.render(former, lambda _: "none\n")
