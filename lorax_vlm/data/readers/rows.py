"""One row of somebody's data to examples, or to what is wrong with it: the same step for every source. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorax_vlm.data.examples import Example, Kind, answered
from lorax_vlm.data.image_facts import ImageFacts, RowImage, Stored
from lorax_vlm.data.problems import Problem, column_names
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.values import answers_in, captions_in, id_text, is_absent, require_text, written_out
from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import quoted, text_problem

ImageOf = Callable[[Mapping[str, Any]], Stored]
"""Finds the image of a row; raises ``MalformedRow``."""
PartOf = Callable[[Stored], str | None]
"""The part that the folder of a row's image is called after; None for none."""


def no_part(image: Stored) -> None:
    """No folder says which part the row belongs to."""


@dataclass(frozen=True)
class Spot:
    """Where a row is."""

    place: str
    """For the person who typed the path: file and line."""
    name: str
    """For records: the same on every machine."""


@dataclass(frozen=True)
class FoundRow:
    """A row that is sound as far as its texts go, and its image has been found."""

    spot: Spot
    kind: Kind | Literal["both"]
    examples: tuple[Example, ...]
    image: Stored
    part: str | None
    """The part that its file or split is for; once rows are divided, the part it belongs to."""
    folder: str | None
    """The part that the folder of its image is called after."""
    split: str | None
    """What its own column says of its part."""
    group: str | None

    def seen(self, facts: ImageFacts) -> "FoundRow | Problem":
        """The row with the content of its image, or what is wrong with that."""
        if facts.problem is not None:
            name = quoted(self.image.name) if isinstance(self.image, Path) else ""
            reason = f"{f'file {name}' if name else 'the image'} is not a readable image: {facts.problem.rstrip('.')}"
            return Problem(self.spot.place, reason, "image", name, "an image")
        image = self.image.identified(facts.digest) if isinstance(self.image, RowImage) else self.image
        return replace(
            self, examples=tuple(replace(e, image=image, digest=facts.digest) for e in self.examples), image=image
        )

    @property
    def digest(self) -> str:
        """Of the image's content, once it was looked at."""
        return self.examples[0].digest


def read_row(
    row: Any, columns: Columns, spot: Spot, image_of: ImageOf, *, part: str | None = None, folder_of: PartOf = no_part
) -> FoundRow:
    """Read a row.

    Args:
        row: Whatever stands there.
        columns: Which column holds what.
        spot: Where it is.
        image_of: Finds its image.
        part: The part that its file or split is for.
        folder_of: The part that the folder of its image is called after.

    Raises:
        MalformedRow: It is no row, or something in it is missing or wrong.
    """
    if not isinstance(row, Mapping):
        raise MalformedRow(
            f"expected an object, found {type(row).__name__}", value=quoted(row), wanted="an object with names"
        )
    if not columns.has(row, "image") and not columns.has(row, "image_id"):
        column = columns.names("image")[0]
        raise MalformedRow(f"no {column!r} (columns: {column_names(row)})", field=column, wanted="the image of the row")
    kind, examples = _examples(row, columns, spot.name)
    image, group = image_of(row), _group(row, columns.group)
    return FoundRow(
        spot=spot,
        kind=kind,
        examples=tuple(replace(example, group=group or "") for example in examples),
        image=image,
        part=part,
        folder=folder_of(image),
        split=_single(row, columns.get(row, "split"), columns.names("split")[0]),
        group=group,
    )


def find_image(row: Mapping[str, Any], columns: Columns, files: ImageFiles) -> Stored:
    """The file that a row names, or whose id it has.

    Raises:
        MalformedRow: There is none.
    """
    column = columns.image_column(row)
    named = columns.get(row, "image")
    if named is not None:
        return files.named(named, column)
    by_id = columns.get(row, "image_id")
    if by_id is not None:
        return files.of_id(by_id, next(name for name in columns.names("image_id") if row.get(name) is by_id))
    return files.named(None, column)


def _examples(row: Mapping[str, Any], columns: Columns, name: str) -> tuple[Kind | Literal["both"], list[Example]]:
    question = columns.get(row, "question")
    captioned = columns.get(row, "caption")
    if question is not None:
        text = require_text(question, "the question", columns.names("question")[0])
        example = answered(b"", text, _answers(row, columns), name, _type(row, columns))
        named = [column for column in columns.names("caption") if column != "text" or "caption" in columns.named]
        both = any(not is_absent(row.get(column)) for column in named)
        return "both" if both else "questions", [example]
    if captioned is not None:
        captions = captions_in(captioned)
        return "captions", [Example(b"", caption, name) for caption in captions]
    raise _nothing_to_learn(row, columns)


def _answers(row: Mapping[str, Any], columns: Columns) -> list[str]:
    value = columns.get(row, "answer")
    if value is None and not columns.has(row, "answer"):
        raise MalformedRow(
            f"a question without 'answer' or 'answers' (columns: {column_names(row)})", field="answer", wanted="text"
        )
    column = next((c for c in columns.names("answer") if row.get(c) is value), columns.names("answer")[0])
    return answers_in(value if value is not None else row.get(column), "an answer", column)


def _nothing_to_learn(row: Mapping[str, Any], columns: Columns) -> MalformedRow:
    for field, label in (("caption", "the caption"), ("question", "the question")):
        empty = [name for name in columns.names(field) if name in row]
        if empty:
            found = quoted(row[empty[0]])
            return MalformedRow(f"{label} is empty or not text: {found}", field=empty[0], value=found, wanted="text")
    looked_for = [*columns.names("caption"), *columns.names("question")]
    names = " nor ".join(repr(name) for name in looked_for if name != "captions")
    return MalformedRow(f"neither {names} (columns: {column_names(row)})", field=looked_for[0], wanted="text to learn")


def _type(row: Mapping[str, Any], columns: Columns) -> str:
    return _single(row, columns.get(row, "type"), columns.names("type")[0]) or ""


def _single(row: Mapping[str, Any], value: Any, column: str) -> str | None:
    """A value that sorts rows, as text."""
    if value is None or is_absent(value):
        return None
    text = written_out(value)
    if text is None or text_problem(text) is not None:
        found = quoted(value)
        raise MalformedRow(f"{column} is {found}, expected text", field=column, value=found, wanted="text")
    return text


def _group(row: Mapping[str, Any], column: str | None) -> str | None:
    if column is None:
        return None
    group = id_text(row.get(column))
    if group is None:
        found = quoted(row.get(column))
        reason = f"the group {column!r} is {found}" if column in row else f"no group {column!r}"
        raise MalformedRow(reason, field=column, value=found if column in row else "", wanted="text or a number")
    return group
