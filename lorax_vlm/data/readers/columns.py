"""Which column of a table holds what: by the names that published data sets use, or by those that the user gives.

No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorax_vlm.data.problems import column_names
from lorax_vlm.data.readers.values import is_absent
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import require_text

FIELDS = ("image", "question", "answer", "caption", "type", "split")
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "image": (
        *("file_name", "image", "image_name", "image_path", "image_file", "image_filename"),
        *("img_name", "img_path", "img", "filename"),
    ),
    "image_id": ("image_id", "imageId", "img_id"),
    "question": ("question",),
    "answer": ("answers", "answer", "multiple_choice_answer"),
    "caption": ("caption", "captions", "text"),
    "type": ("type", "answer_type", "question_type"),
    "split": ("split",),
}
COLUMNS_HINT = (
    "Say which column is which: --columns image=picture,question=q,answer=a (or caption=text instead of the latter)."
)
_TEXTS = ("question", "answer", "caption")


@dataclass(frozen=True)
class Columns:
    """The columns of one source."""

    named: Mapping[str, str] = field(default_factory=dict)
    """Our fields by the user's column."""
    group: str | None = None
    """Column whose equal values stay on one side."""

    def __post_init__(self) -> None:
        """Every field is one of ``FIELDS``.

        Raises:
            DataError: One is not.
            UsageError: They are no mapping of texts, or ``group`` is no text.
        """
        if not isinstance(self.named, Mapping) or not all(isinstance(name, str) for name in self.named.values()):
            raise UsageError(f"columns must be our fields by the names of columns, got {quoted(self.named)}.")
        if self.group is not None:
            require_text("group_by", self.group)
        unknown = set(self.named) - set(FIELDS)
        if unknown:
            names = ", ".join(sorted(map(str, unknown)))
            raise DataError("--columns", [f"unknown fields {names}; known: {', '.join(FIELDS)}"], COLUMNS_HINT)

    def names(self, wanted: str) -> tuple[str, ...]:
        """The columns that may hold a field, the likeliest first."""
        if wanted in self.named:
            return (self.named[wanted],)
        if wanted == "image_id" and "image" in self.named:
            return ()
        if wanted in _TEXTS and not self._chosen(wanted):
            return ()
        return USUAL_NAMES[wanted]

    def _chosen(self, wanted: str) -> bool:
        """Whether a field of text is read although its column was not named."""
        texts = [text for text in _TEXTS if text in self.named]
        return not texts or (wanted != "caption" and texts != ["caption"])

    def get(self, row: Mapping[str, Any], wanted: str) -> Any:
        """The first value that is there; None for none."""
        return next((row[name] for name in self.names(wanted) if name in row and not is_absent(row[name])), None)

    def has(self, row: Mapping[str, Any], wanted: str) -> bool:
        """Whether there is a column for it, whatever stands in it."""
        return any(name in row for name in self.names(wanted))

    def image_column(self, row: Mapping[str, Any]) -> str:
        """How a message calls the column of the image."""
        return next((name for name in self.names("image") if name in row), self.names("image")[0])

    def require_in(self, source: str, seen: Mapping[str, Any]) -> None:
        """Every column that the user named is in some row.

        Args:
            source: What the data are called.
            seen: All columns.

        Raises:
            DataError: One is in none.
        """
        asked = [*self.named.values(), *([self.group] if self.group is not None else [])]
        missing = [name for name in asked if name not in seen]
        if missing and seen:
            problems = [f"no column {name!r} (columns: {column_names(seen)})" for name in missing]
            raise DataError(source, problems, COLUMNS_HINT if self.group not in missing else "")
