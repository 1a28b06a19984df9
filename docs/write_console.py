"""Writes what README and docs quote of the program's output, from the program: ``make console``, about 20 minutes.

A block of output says in a comment above itself what printed it:

    <!-- printed by: lorax-vlm evaluate counting --count 500 -->

All commands run in one new home and one new folder, in which the published set of questions is the folder ``shapes``,
after the three scripts, in the order of the documents. ``from "WORDS"`` at the end of
the comment takes only the lines from the first one that begins with these words up to the next empty one, and
``lines 1-3 9`` only those of them. Figures that depend on the machine change with it: look at the difference.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.easy_vqa import write_set

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "cli.md"))
SCRIPTS = ("python blip2_captioning.py", "python vqa_system.py", "python multimodal_exchange.py")
_BLOCK = re.compile(
    r'<!-- printed by: (?P<command>.+?)(?: from "(?P<start>[^"]+)")?(?: lines (?P<lines>[\d -]+))? -->\n'
    r"(?P<fence>```[a-z]*\n)(?P<text>.*?)```",
    flags=re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of output in a document."""

    command: str
    start: str
    """Beginning of its first line; empty for all that is printed."""
    lines: str
    """Numbers of the lines that are shown, from 1; empty for all."""
    text: str

    def part_of(self, printed: str) -> str:
        """What the block should be.

        Raises:
            ValueError: Nothing that is printed begins with its words.
        """
        found = printed.rstrip().splitlines()
        if self.start:
            first = next((number for number, line in enumerate(found) if line.startswith(self.start)), None)
            if first is None:
                raise ValueError(f"{self.command}: no line begins with {self.start!r}")
            found = found[first:]
            found = found[: found.index("")] if "" in found else found
        if self.lines:
            found = [line for number, line in enumerate(found, start=1) if number in set(_numbers(self.lines))]
        return "".join(f"{line.rstrip()}\n" for line in found)


def _numbers(lines: str) -> Iterator[int]:
    for part in lines.split():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _block(found: re.Match[str]) -> Block:
    return Block(found["command"], found["start"] or "", found["lines"] or "", found["text"])


def blocks(page: str) -> list[Block]:
    """The blocks of output of a document."""
    return [_block(found) for found in _BLOCK.finditer(page)]


def render(page: str, printed: Callable[[str], str]) -> str:
    """A document with its blocks written anew.

    Args:
        page: As it is.
        printed: What a command prints.
    """

    def anew(found: re.Match[str]) -> str:
        block = _block(found)
        head = found[0][: found.start("text") - found.start()]
        return f"{head}{block.part_of(printed(block.command))}```"

    return _BLOCK.sub(anew, page)


class Console:
    """Runs commands in a home of their own, each once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._printed = folder, dict[str, str]()

    def __call__(self, command: str) -> str:
        """What a command prints on its standard output; an error ends everything."""
        if command not in self._printed:
            print(f"$ {command}", flush=True)
            program, *words = shlex.split(command)
            words = ["-m", "lorax_vlm", *words] if program == "lorax-vlm" else [str(ROOT / words[0]), *words[1:]]
            home = {"LORAX_VLM_HOME": str(self._folder / "home"), "PYTHONPATH": str(ROOT)}
            run = [sys.executable, *words]
            done = subprocess.run(
                run, cwd=self._folder, env=os.environ | home, check=True, stdout=subprocess.PIPE, text=True
            )
            self._printed[command] = done.stdout
        return self._printed[command]


def main() -> None:
    """Run everything and write the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder) / "shapes")
        console = Console(Path(folder))
        for script in SCRIPTS:
            console(script)
        for path in DOCUMENTS:
            page = path.read_text(encoding="utf-8")
            if blocks(page):
                path.write_text(render(page, console), encoding="utf-8")
                print(f"Wrote {path}")


if __name__ == "__main__":
    main()
