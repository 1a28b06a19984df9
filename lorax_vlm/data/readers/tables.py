"""Rows of a table in one file: JSON lines or CSV. A line that is none is a problem of its own, with its number.

No torch.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorax_vlm.errors import DataError, MalformedRow
from lorax_vlm.foreign import decode_text, parse_json

TEXT_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
_QUOTED = re.compile(r'"[^"]*"')
_LONGEST_CELL = 2**24
_WIDE_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Line = tuple[int, Any | MalformedRow]
"""Number of a line, and its row or what is wrong with it."""


def read_lines(path: Path) -> Iterator[Line]:
    """The rows of a file of JSON lines or CSV.

    Raises:
        DataError: It cannot be read at all.
    """
    data = read_whole(path)
    return csv_rows(path, data) if path.suffix.lower() in (".csv", ".tsv") else json_lines(data)


def read_whole(path: Path) -> bytes:
    """The bytes of a file that somebody named.

    Raises:
        DataError: It cannot be read, or is no file.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(str(path), ["it cannot be read: it is no file"])
        return path.read_bytes()
    except OSError as error:
        raise DataError(str(path), [f"it cannot be read: {error.strerror or type(error).__name__}"]) from error


def json_lines(data: bytes) -> Iterator[Line]:
    """One JSON value a line; lines end with a line feed and nothing else, so texts may hold any other character."""
    wide = data.startswith(_WIDE_MARKS)
    if wide:
        try:
            text = decode_text(data)
        except ValueError as error:
            yield 1, MalformedRow(str(error))
            return
    lines: list[Any] = text.split("\n") if wide else data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line, unique=True)
        except ValueError as error:
            yield number, MalformedRow(str(error), wanted="a JSON object on one line")


def csv_rows(path: Path, data: bytes) -> Iterator[Line]:
    """Rows by the names in the first line, separated by tabs, commas or semicolons: whichever the first line is.

    An empty cell is one with nothing in it.

    Raises:
        DataError: It is no CSV with a line of names.
    """
    try:
        text = decode_text(data)
    except ValueError as error:
        raise DataError(str(path), [f"it is {error}"], "Save it as UTF-8.") from None
    separator = _separator(text)
    without_quotes = separator == "\t" and _quotes_are_letters(text)
    names: list[str] | None = None
    for number, cells in _lines_of_tabs(text) if without_quotes else _quoted_cells(path, text, separator):
        if names is None:
            names = _require_names(path, cells)
        elif len(cells) != len(names):
            reason = f"{len(cells)} cells, the first line names {len(names)}; a text with commas needs quotes"
            yield number, MalformedRow(reason, value=str(len(cells)), wanted=f"{len(names)} cells")
        else:
            yield number, {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _quoted_cells(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Rows as RFC 4180 has them, each with the number of the line it begins in; empty lines are none."""
    former = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        last = 0
        for cells in reader:
            number, last = last + 1, reader.line_num
            if cells:
                yield number, cells
    except csv.Error as error:
        raise DataError(str(path), [f"line {reader.line_num}: not CSV: {error}"], "Are all quotes closed?") from None
    finally:
        csv.field_size_limit(former)


def _quotes_are_letters(text: str) -> bool:
    """Whether a file with tabs is one row a line, as such files mostly are: a quote in it is a letter of the text.

    Some programs quote cells there as in CSV. Theirs cannot be told by the quotes but by the lines: where a quoted cell
    has a tab or ends a line, lines have different numbers of tabs.
    """
    counts = {line.count("\t") for line in text.splitlines() if line.strip()}
    if len(counts) == 1:
        return True
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True):
            pass
    except csv.Error:
        return True
    return False


def _lines_of_tabs(text: str) -> Iterator[tuple[int, list[str]]]:
    """Rows of one line each. A cell that is quoted whole, as CSV does it, is what stands in the quotes."""
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip("\r\n"):
            yield number, [_unquoted(cell) for cell in line.rstrip("\r\n").split("\t")]


def _unquoted(cell: str) -> str:
    whole = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return cell if whole is None else whole[1].replace('""', '"')


def _separator(text: str) -> str:
    """What parts the names. No name has a tab; of commas and semicolons the ones that are more."""
    first = _QUOTED.sub("", text.partition("\n")[0])
    return "\t" if "\t" in first else max(",", ";", key=first.count)


def _require_names(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(str(path), [f"the first line names the column {twice[0]!r} twice"])
    return names
