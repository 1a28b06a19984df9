"""What is wrong with data, one line for each row: for people to read, and for a file to correct them by. No torch."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lorax_vlm.errors import DataError, MalformedRow, PathError
from lorax_vlm.foreign import printable

_MOST_COLUMNS, _MOST_LETTERS = 12, 40


class Problem(str):
    """A malformed row as ``file:line: reason``, or with its place in a JSON document; the parts are attributes."""

    place: str
    """File and line, or place in the document, or id."""
    field: str
    """The column or name that is wrong, where it is one."""
    value: str
    """What stands there, cut short."""
    wanted: str
    """What would be right."""
    reason: str

    def __new__(cls, place: str, reason: str, field: str = "", value: str = "", wanted: str = "") -> "Problem":
        """A line of place and reason."""
        line = super().__new__(cls, f"{printable(place)}: {printable(reason)}")
        line.place, line.reason, line.field, line.value, line.wanted = place, reason, field, value, wanted
        return line

    @classmethod
    def of(cls, place: str, row: MalformedRow) -> "Problem":
        """What a reader found wrong, with its place."""
        return cls(place, row.reason, row.field, row.value, row.wanted)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy has the same parts."""
        return Problem, (self.place, self.reason, self.field, self.value, self.wanted)

    def record(self) -> dict[str, str]:
        """The parts by name, as they are written to a file."""
        return {
            "place": self.place,
            "field": self.field,
            "value": self.value,
            "reason": self.reason,
            "wanted": self.wanted,
        }


def write_problems(problems: Sequence[Problem], path: str | Path) -> Path:
    """Write one JSON object a line: place, field, value, reason, and what would be right.

    Raises:
        PathError: The file cannot be written.
    """
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(problem.record()) + "\n" for problem in problems), encoding="ascii")
    except OSError as error:
        raise PathError.of(target, error) from error
    return target


def column_names(columns: Iterable[Any]) -> str:
    """The names of columns for a message, cut short."""
    names = [str(name)[:_MOST_LETTERS] for name in columns]
    more = f", and {len(names) - _MOST_COLUMNS} more" if len(names) > _MOST_COLUMNS else ""
    return printable(", ".join(names[:_MOST_COLUMNS]) + more)


def require_no_problems(source: str, problems: Sequence[Problem], hint: str, *, skip_bad_rows: bool) -> None:
    """Stop unless malformed rows are to be left out.

    Raises:
        DataError: Listing every problem.
    """
    if problems and not skip_bad_rows:
        raise DataError(source, problems, f"{hint} Correct the rows, or leave them out with --skip-bad-rows.".strip())
