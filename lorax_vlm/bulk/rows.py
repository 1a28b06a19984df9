"""The rows of a table, a document or a data set as items: an image each, and where it has one a question. No torch."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.remote_files import RemoteFiles, behind
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.data.problems import column_names
from lorax_vlm.data.readers.columns import COLUMNS_HINT, Columns
from lorax_vlm.data.readers.documents import unlabelled_rows
from lorax_vlm.data.readers.hub import HUB_PREFIX, unlabelled_splits
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import ImageOf, find_image
from lorax_vlm.data.readers.table_files import numbered_rows
from lorax_vlm.data.readers.tables import TABLE_SUFFIXES
from lorax_vlm.data.readers.values import is_absent, is_blank
from lorax_vlm.errors import DataError, LoraxError, MalformedRow, PathError, PromptError, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.sharing.places import RemoteFolder

_LOOKED_AT, _SHOWN = 1000, 3
FILES_OF_ROWS = (*TABLE_SUFFIXES, ".json")


@dataclass(frozen=True)
class Rows(ABC):
    """Rows that may be gone through more than once."""

    columns: Columns = field(default_factory=Columns, kw_only=True)
    questions: bool = field(default=True, kw_only=True)
    """Whether their questions are asked, rather than captions wanted."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What outputs are called after."""

    @abstractmethod
    def numbered(self) -> Iterator[tuple[str, Any, ImageOf]]:
        """The rows, or what is wrong with one, each with its place and what finds its image.

        Raises:
            DataError: They cannot be read at all.
        """

    def __iter__(self) -> Iterator[Item]:
        """Their items; what is malformed is an item with a problem.

        Raises:
            DataError: They cannot be read at all.
        """
        seen = Counter[str]()
        for place, row, image_of in self.numbered():
            item = self._item(place, row, image_of)
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
        problem: LoraxError | None = None
        if not isinstance(question, str) and is_absent(question):
            problem = DataError(place, [f"no question (columns: {column_names(row)})"])
        elif not isinstance(question, str) or is_blank(question):
            problem = PromptError(f"the question {quoted(question)}", "it is empty or not text.")
        return Item(image, name, "", question if problem is None else None, kept, place, problem)

    def require_rows(self) -> None:
        """Find out whether there is anything to do; where none of many rows can be used, its columns are others.

        Raises:
            DataError: They cannot be read, there are none, or the first ones are all malformed.
        """
        problems: list[str] = []
        for item in islice(self, _LOOKED_AT):
            if item.problem is None:
                return
            problems.append(str(item.problem).strip().splitlines()[-1].strip())
        if not problems:
            raise DataError(self.name, ["it has no rows"])
        count = f"none of the first {len(problems)} rows" if len(problems) == _LOOKED_AT else "none of its rows"
        reasons = list(dict.fromkeys(problems))[:_SHOWN]
        raise DataError(
            self.name, [f"{count} can be used", *reasons], f"{COLUMNS_HINT} And where images are: --images."
        )


@dataclass(frozen=True)
class FileRows(Rows):
    """Those of a file: JSON lines, CSV, parquet, or a JSON document as published data sets come."""

    path: Path
    images: Path | RemoteFolder | None = None
    """Folder of the images. None: that of the file."""
    address: str = ""
    """Where it was fetched from; it is only its copy that is here then."""

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            PathError: There is no such file, or folder of images.
            UsageError: It is of another kind.
        """
        if self.path.suffix.lower() not in FILES_OF_ROWS:
            raise UsageError(f"{self.path} is no table; what is read: {', '.join(FILES_OF_ROWS)}.")
        if not self.path.is_file():
            raise PathError(str(self.path), "it is no file" if self.path.exists() else "no such file")
        if isinstance(self.images, Path) and not self.images.is_dir():
            raise PathError(str(self.images), "there is no such image folder")

    @property
    def name(self) -> str:
        """That of the file, without its ending."""
        return self.path.stem

    def numbered(self) -> Iterator[tuple[str, Any, ImageOf]]:
        """See ``Rows.numbered``."""
        if isinstance(self.images, RemoteFolder):
            files = RemoteFiles(self.images, sub_folders=True)
            for place, row, image_of in self._numbered(files):
                yield place, row, behind(files, image_of)
        else:
            yield from self._numbered(ImageFiles(self.images or self.path.parent, sub_folders=self.images is not None))

    def _numbered(self, files: ImageFiles) -> Iterator[tuple[str, Any, ImageOf]]:
        if self.path.suffix.lower() == ".json":
            find = partial(find_image, columns=self.columns, files=files)
            yield from ((f"{self.path.name}: {place}", row, find) for place, row in unlabelled_rows(self.path))
        else:
            for place, row, image_of in numbered_rows(self.path, self.columns, files):
                yield f"{self.path.name}{place}", row, image_of


@dataclass(frozen=True)
class HubRows(Rows):
    """Those of a data set of the hub, or of a folder that ``datasets`` reads; all splits, or one."""

    source: str
    """As for ``readers.hub.read_hub_dataset``."""
    split: str | None = None

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.source.rstrip("/").rpartition("/")[2].replace(":", "-") + (f"-{self.split}" if self.split else "")

    def numbered(self) -> Iterator[tuple[str, Any, ImageOf]]:
        """See ``Rows.numbered``."""
        for split, index, row, image_of in unlabelled_splits(self.source, self.columns, self.split):
            yield f"{HUB_PREFIX}{self.source}:{split}[{index}]", row, image_of


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a table of texts can keep: not the images themselves."""
    return {name: value for name, value in row.items() if not _is_image(value)}


def _is_image(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and "bytes" in value)
