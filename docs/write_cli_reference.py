"""Writes docs/cli.md from the commands themselves: ``make docs``."""

from collections.abc import Iterator
from pathlib import Path

import click

from lorax_vlm.cli.main import new_command

PATH = Path(__file__).parent / "cli.md"


def render() -> str:
    """The whole page."""
    pages = [f"## `{name}`\n\n```\n{text}\n```" for name, text in _helps(new_command(), ["lorax-vlm"])]
    head = "# The `lorax-vlm` command\n\nWritten by `make docs` from the commands' own help.\n"
    return "\n".join([head, *(f"{page}\n" for page in pages)])


def _helps(command: click.Command, path: list[str]) -> Iterator[tuple[str, str]]:
    context = click.Context(command, info_name=path[-1], max_content_width=100, terminal_width=100)
    context.info_name = " ".join(path)
    lines = command.get_help(context).rstrip().splitlines()
    yield " ".join(path), "\n".join(line.rstrip() for line in lines)
    for name, child in getattr(command, "commands", {}).items():
        yield from _helps(child, [*path, name])


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
    print(f"Wrote {PATH}")
