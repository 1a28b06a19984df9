"""How the command line prints: tables for people, columns for pipes, JSON for programs. No torch.

What other people wrote (captions, questions, names, records) is text and nothing else: never markup, never an emoji
code, and control characters are written out.
"""

import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorax_vlm.errors import PathError
from lorax_vlm.foreign import printable

MANY_ROWS = 200
SILENT = "(the model ended without a word)"
"""Stands where a model said nothing."""
_DRAWN_ONLY = "{name} knows drawn scenes of coloured shapes only; of photographs it says something about shapes."
_NARROWEST = 40


class _StandardOutput(io.TextIOBase):
    """Standard output as it is at the time of writing; what cannot be written is said, and no letter stops a line."""

    def write(self, text: str) -> int:
        stream = sys.stdout
        encoding = getattr(stream, "encoding", None) or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        try:
            return stream.write(shown)
        except BrokenPipeError:
            raise  # whoever read the output has seen enough
        except OSError as error:
            raise PathError.of("standard output", error) from error

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise PathError.of("standard output", error) from error

    def isatty(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()  # it may be closed

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


_output = _StandardOutput()
console = Console(file=_output, markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def say(text: str, style: str = "") -> None:
    """Print one line or several as they are, never broken to fit a width."""
    console.print(Text(printable(text), style=style), soft_wrap=True)


def say_wrote(path: Path, *, as_json: bool) -> None:
    """Say that a file was written; on the side where standard output is one JSON document."""
    if as_json:
        sys.stderr.write(f"Wrote {printable(str(path))}\n")
    else:
        say(f"Wrote {path}")


def say_drawn_only(miniature: str, images: Sequence[str]) -> None:
    """Say what a miniature knows, where an image is called like a photograph: drawn scenes are PNG files."""
    if any(image.lower().rsplit(".", 1)[-1] in ("jpg", "jpeg", "heic") for image in images):
        sys.stderr.write(f"{_DRAWN_ONLY.format(name=miniature)}\n")


def flag(style: str, word: str, text: str) -> None:
    """Print a line that begins with a coloured word."""
    line = Text(printable(word), style=style)
    line.append(f" {printable(text)}", style="default")
    console.print(line, soft_wrap=True)


def say_parts(parts: Sequence[tuple[str, str]]) -> None:
    """Print a line of texts, each with its style, as they are and never broken to fit a width."""
    line = Text()
    for text, style in parts:
        line.append(printable(text), style=style)
    console.print(line, soft_wrap=True)


def print_json(value: Any) -> None:
    """Write one JSON document to standard output: strictly JSON, in letters that every encoding has if it must be."""
    encoding = _output.encoding.lower().replace("-", "").replace("_", "")
    text = json.dumps(as_json_values(value), indent=2, ensure_ascii=not encoding.startswith("utf"), allow_nan=False)
    _output.write(text + "\n")
    _output.flush()


def as_json_values(value: Any) -> Any:
    """Values of JSON; a number that is none is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, Exception):
        value = {"error": type(value).__name__, "message": str(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json_values(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | Path):  # half of a character has no encoding
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows; columns whose name ends in a space are aligned right.

    Into a pipe or a file, for many rows, and where a terminal is too narrow, plain columns are printed: one line per
    row, nothing cut off or broken.
    """
    texts = [[_cell(cell) for cell in row] for row in rows]
    # A frame, two spaces around each column, and room for the words of the narrowest ones.
    too_narrow = console.width < max(_NARROWEST, 9 * len(columns))
    if len(rows) > MANY_ROWS or not console.is_terminal or too_narrow:
        _print_plain(columns, texts, title)
        return
    table = Table(title=Text(printable(title)) if title else None, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        # The first column names the row: it is never broken.
        table.add_column(
            Text(printable(column.strip())),
            justify="right" if column.endswith(" ") else "left",
            overflow="fold",
            no_wrap=number == 0 and max((len(row[0]) for row in texts), default=0) < console.width // 2,
        )
    for row in texts:
        table.add_row(*map(Text, row))
    console.print(table)


def _cell(value: object) -> str:
    return printable(str(value))


def _print_plain(columns: Sequence[str], texts: Sequence[Sequence[str]], title: str) -> None:
    """Columns as wide as their widest cell; white space in a cell is one space, so that a row stays a line."""
    lines = [[printable(column.strip()) for column in columns], *([" ".join(c.split()) for c in row] for row in texts)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    rights = [column.endswith(" ") for column in columns]
    if title:
        _output.write(f"{printable(title)}\n")
    for line in lines:
        cells = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, rights, strict=True))
        _output.write("  ".join(cells).rstrip() + "\n")
    _output.flush()


def end_output() -> None:
    """Write what is still to be written; where that cannot be, say so once and let nothing else complain of it."""
    try:
        _output.flush()
    except PathError as error:
        sys.stderr.write(f"PathError: {error}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        os._exit(1)
