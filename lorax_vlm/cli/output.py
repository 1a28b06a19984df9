"""How the command line prints: tables for people, JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console()
MANY_ROWS = 200


def print_json(value: Any) -> None:
    """Write one JSON document to standard output."""
    json.dump(value, sys.stdout, indent=2, default=_plain, ensure_ascii=False)
    sys.stdout.write("\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows; columns whose name ends in a space are aligned right. Many rows are printed without a frame."""
    if len(rows) > MANY_ROWS:
        _print_plain(columns, rows, title)
        return
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column.strip(), justify="right" if column.endswith(" ") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def _print_plain(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str) -> None:
    """Columns as wide as their widest cell: laying out a thousand framed rows takes longer than all else."""
    texts = [[column.strip() for column in columns], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in texts) for index in range(len(columns))]
    rights = [column.endswith(" ") for column in columns]
    if title:
        sys.stdout.write(f"{title}\n")
    for row in texts:
        cells = (c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, rights, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"
