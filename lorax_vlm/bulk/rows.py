"""The rows of a table as items: an image each, and where it has one a question. No torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorax_vlm.bulk.items import Item
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.table_files import numbered_rows
from lorax_vlm.data.readers.tables import TABLE_SUFFIXES
from lorax_vlm.data.readers.values import is_blank
from lorax_vlm.errors import DataError, MalformedRow, PromptError, UsageError
from lorax_vlm.foreign import quoted


def is_table(path: Path) -> bool:
    """Whether a file is called like a table of rows."""
    return path.suffix.lower() in TABLE_SUFFIXES


@dataclass(frozen=True)
class TableRows:
    """A file of rows: JSON lines, CSV or parquet. It may be gone through more than once."""

    path: Path
    images: Path | None = None
    """Folder of the images. None: that of the file."""
    columns: Columns = field(default_factory=Columns)
    questions: bool = True
    """Whether its questions are asked, rather than captions wanted."""

    def __iter__(self) -> Iterator[Item]:
        """Its rows; what is malformed is an item with a problem.

        Raises:
            DataError: It cannot be read at all.
        """
        files = ImageFiles(self.images or self.path.parent, sub_folders=self.images is not None)
        seen = Counter[str]()
        for place, row, image_of in numbered_rows(self.path, self.columns, files):
            item = self._item(f"{self.path.name}{place}", row, image_of)
            seen[item.name] += 1  # a row that occurs again is asked again
            yield item if seen[item.name] == 1 else replace(item, name=f"{item.name} {seen[item.name]}")

    def _item(self, place: str, row: Any, image_of: Any) -> Item:
        kept = _plain(row) if isinstance(row, Mapping) else {}
        name = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest() if kept else place
        try:
            if isinstance(row, MalformedRow):
                raise row
            if not isinstance(row, Mapping):
                raise MalformedRow(f"expected an object, found {type(row).__name__}")
            image = image_of(row)
        except MalformedRow as wrong:
            return Item(b"", name, "", row=kept, place=place, problem=DataError(place, [wrong.reason]))
        if isinstance(image, RowImage):
            name = f"{name} {place}"  # what it shows is in no other column
        if not self.questions:
            return Item(image, name, "", row=kept, place=place)
        question = self.columns.get(row, "question")
        if not isinstance(question, str) or is_blank(question):
            problem = PromptError(f"the question {quoted(question)}", "it is empty or not text.")
            return Item(image, name, "", row=kept, place=place, problem=problem)
        return Item(image, name, "", question, kept, place)

    def require_rows(self) -> None:
        """Find out whether there is anything to do.

        Raises:
            DataError: It cannot be read, or has no rows.
            UsageError: It is no table.
        """
        if not is_table(self.path):
            raise UsageError(f"{self.path} is no table; what is read: {', '.join(TABLE_SUFFIXES)}.")
        if next(iter(self), None) is None:
            raise DataError(str(self.path), ["it has no rows"])


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a table of texts can keep: not the images themselves."""
    return {name: value for name, value in row.items() if not _is_image(value)}


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and "bytes" in value)
