"""Images nobody labelled, for a model to learn from another one's answers."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import Example
from lorax_vlm.data.image_facts import RowImage, examine
from lorax_vlm.data.problems import Problem, column_names, require_no_problems
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.folder_tables import METADATA, tables_in
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.listing import IMAGE_SUFFIXES, images_below
from lorax_vlm.data.readers.table_files import numbered_rows
from lorax_vlm.data.readers.values import is_absent
from lorax_vlm.errors import DataError, MalformedRow
from lorax_vlm.foreign import printable, quoted, text_problem

logger = logging.getLogger(__name__)
_SHOWN = 5


def read_unlabelled(folder: str | Path, *, skip_bad_rows: bool = False) -> list[Example]:
    """The images of a folder, with the questions about them where a table of rows has any; answers are not read.

    Without a table, files that cannot be read as images are left out with a warning: nobody asked for them.

    Args:
        folder: With images, and perhaps tables as ``readers.folder`` reads them.
        skip_bad_rows: Leave malformed rows of the table out, with a warning.

    Raises:
        DataError: There is no such folder, no image in it, or a row is malformed; every row is listed.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(str(root), ["it is no folder" if root.exists() else "no such folder"])
    tables = [table.path for table in tables_in(root)]
    found = [row for table in tables for row in _rows(root, table)] if tables else _listed(root)
    if not found:
        nothing = f"it holds no images ({', '.join(IMAGE_SUFFIXES)}) and no table called {METADATA}"
        raise DataError(str(root), [f"{tables[0].name} has no rows" if tables else nothing])
    facts = iter(examine([row.image for row in found if isinstance(row, Example)]))  # type: ignore[misc]
    looked_at = [_looked_at(root, row, next(facts)) if isinstance(row, Example) else row for row in found]
    problems = [row for row in looked_at if isinstance(row, Problem)]
    examples = [row for row in looked_at if isinstance(row, Example)]
    require_no_problems(str(root), problems, "", skip_bad_rows=skip_bad_rows or (not tables and bool(examples)))
    if not examples:
        raise DataError(str(root), problems)
    for problem in problems[:_SHOWN]:
        logger.warning("Left out: %s", problem)
    if len(problems) > _SHOWN:
        logger.warning("Left out: %d more", len(problems) - _SHOWN)
    return examples


def _listed(root: Path) -> list[Example | Problem]:
    return [Example(path, "", printable(path.relative_to(root).as_posix())) for path in images_below(root)]


def _rows(root: Path, table: Path) -> list[Example | Problem]:
    name, found = printable(table.relative_to(root).as_posix()), list[Example | Problem]()
    for place, row, image_of in numbered_rows(table, Columns(), ImageFiles(table.parent)):
        try:
            if isinstance(row, MalformedRow):
                raise row
            question = _question(row)
            found.append(Example(image_of(row), "", f"{name}{place}", question=question))
        except MalformedRow as wrong:
            found.append(Problem.of(f"{table}{place}", wrong))
    return found


def _question(row: Any) -> str:
    if not isinstance(row, Mapping):
        raise MalformedRow(f"expected an object, found {type(row).__name__}", value=quoted(row))
    if not Columns().has(row, "image"):
        raise MalformedRow(f"no 'file_name' (columns: {column_names(row)})", field="file_name")
    question = row.get("question")
    if question is None or is_absent(question):
        return ""
    if not isinstance(question, str) or text_problem(question) is not None:
        found = quoted(question)
        raise MalformedRow(f"question is {found}, expected text", field="question", value=found, wanted="text")
    return question


def _looked_at(root: Path, example: Example, facts: Any) -> Example | Problem:
    if facts.problem is None:
        image = example.image
        known = image.identified(facts.digest) if isinstance(image, RowImage) else image
        return replace(example, image=known, digest=facts.digest)
    return Problem(
        f"{root}/{example.name}", f"it is not a readable image: {facts.problem.rstrip('.')}", "image", wanted="an image"
    )
