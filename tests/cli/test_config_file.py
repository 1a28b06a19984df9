"""``--config FILE``: a command in a file is the command on the line, and the other way round."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lorax_vlm.cli.config_file import add_config_option, arguments_of, given, keys_of
from lorax_vlm.cli.main import command


def leaves(parent: Any, name: str = "") -> list[tuple[str, Any]]:
    children = getattr(parent, "commands", None)
    if children is None:
        return [(name, parent)]
    return [leaf for word, child in children.items() for leaf in leaves(child, f"{name} {word}".strip())]


LEAVES = dict(leaves(command()))


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_it_and_names_all_of_its_options_apart(name: str) -> None:
    keys = [key for _, key in keys_of(LEAVES[name])]
    assert len(keys) == len(set(keys))
    assert sum("--config" in parameter.opts for parameter in LEAVES[name].params) == 1
    names = [parameter.name for parameter in LEAVES[name].params]
    assert len(names) == len(set(names))


def example() -> tuple[Any, list[dict[str, Any]]]:
    """A command with every kind of parameter, and what it hears."""
    app, heard = typer.Typer(), []

    @app.command()
    def one(
        context: typer.Context,
        names: list[str],
        count: int = 3,
        share: float = 0.5,
        word: list[str] | None = None,
        quiet: bool = False,
        colour: bool = typer.Option(True, "--colour/--no-colour"),
        path: Path | None = None,
    ) -> None:
        values = {key: value for key, value in context.params.items()}
        heard.append({"values": values, "given": given(context)})

    return add_config_option(typer.main.get_command(app)), heard


LINES = [
    ["a", "b", "--count", "4", "--word", "x", "--word", "-y", "--quiet"],
    ["--no-colour", "--path", "some/where", "--share", "-0.25", "--", "-a", "b"],
    ["a", "--word", "no", "--word", "010"],
]


@pytest.mark.parametrize("line", LINES)
def test_a_line_a_file_and_what_is_made_of_them_say_the_same(line: list[str], tmp_path: Path) -> None:
    one, heard = example()
    one.main(args=line, prog_name="lorax-vlm", standalone_mode=False)
    words = arguments_of(one, heard[0]["given"])
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump(heard[0]["given"]))
    one.main(args=words, prog_name="lorax-vlm", standalone_mode=False)
    one.main(args=["--config", str(file)], prog_name="lorax-vlm", standalone_mode=False)
    assert heard[0] == heard[1] == heard[2]


def test_the_line_counts_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("names: [a]\ncount: 7\nshare: 0.1\n")
    one, heard = example()
    one.main(args=["b", "--count", "8", "--config", str(file)], prog_name="lorax-vlm", standalone_mode=False)
    assert heard[0]["given"] == {"names": ["b"], "count": 8, "share": 0.1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("command: ask\n", "it is for lorax-vlm ask, not for lorax-vlm caption"),
        ("imagse: [a]\n", "'imagse' is no option of lorax-vlm caption; images?"),
        ("strict: 1\n", "strict: it must be true or false, got 1"),
        ("adapter: {a: b}\n", "adapter: it must be one value or a list"),
        ("adapter: [no]\n", "it must be a list of texts or numbers, and False is none"),
        ("prefix: [a]\n", "prefix: it must be one value"),
        ("prefix: yes\n", "prefix: it must be one value, got True"),
        ("beams: 2\nbeams: 3\n", "'beams' occurs twice"),
        ("- a\n", "it has no options"),
        ("", "it has no options"),
        ("a: &b [1]\nc: *b\n", "aliases are not read"),
    ],
)
def test_everything_wrong_with_a_file_is_said(run, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert said in run("caption", "photos", "--config", tmp_path / "c.yaml", code=1)


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("names: a\nword: x\n")
    one, heard = example()
    one.main(args=["--config", str(file)], prog_name="lorax-vlm", standalone_mode=False)
    assert heard[0]["given"] == {"names": ["a"], "word": ["x"]}


def test_what_it_takes_is_what_the_option_takes(run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("beams: many\n")
    assert "Invalid value for '--beams'" in run("caption", "photos", "--config", tmp_path / "c.yaml", code=2)
    assert "it cannot be read" in run("caption", "photos", "--config", tmp_path / "none.yaml", code=1)
