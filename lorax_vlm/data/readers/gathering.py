"""From the rows that a reader found to the examples of each part; what is wrong comes out together, in order.

No torch.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from lorax_vlm.data.examples import DataSplits, Example, Kind, kind_of, require_one_kind
from lorax_vlm.data.image_facts import Progress, examine
from lorax_vlm.data.problems import Problem, require_no_problems
from lorax_vlm.data.readers.columns import COLUMNS_HINT, Columns
from lorax_vlm.data.readers.rows import FoundRow, ImageOf, PartOf, Spot, no_part, read_row
from lorax_vlm.data.splitting import (
    DEFAULT_HELD_OUT,
    PART_NAMES,
    TEST,
    TRAIN,
    VALIDATION,
    held_out_images,
    part_called,
    require_share,
)
from lorax_vlm.errors import DataError, MalformedRow, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import require_flag, require_known

_CHOICES = ("choices", "options")
_PLACE = re.compile(r"[0-9]|[A-Ha-h]")
_LIST_AS_TEXT = re.compile(r"""\[\s*['"{].*['"}]\s*\]""", re.DOTALL)


@dataclass(frozen=True)
class ReadOptions:
    """What is asked of every reader."""

    columns: Columns = field(default_factory=Columns)
    held_out: float = DEFAULT_HELD_OUT
    """Share of the images that is held out where the data bring no validation part along."""
    skip_bad_rows: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            UsageError: One is of another type, or no share.
        """
        require_share(self.held_out)
        require_flag("skip_bad_rows", self.skip_bad_rows)
        if self.progress is not None and not callable(self.progress):
            raise UsageError(f"progress must be a function of two numbers, got {quoted(self.progress)}.")


class ReadKeywords(TypedDict, total=False):
    """The keywords of every reader."""

    columns: Mapping[str, str] | None
    """Our fields (``image``, ``question`` and ``answer``, or ``caption``; ``type``, ``split``) by column, where names
    differ."""
    held_out: float
    """Share of the images that is held out where the data bring no validation part along, above 0 and below 1."""
    group_by: str | None
    """Column whose equal values (a clip, a patient, a product) stay on one side."""
    skip_bad_rows: bool
    """Leave malformed rows out (they stay listed in the result) instead of raising."""
    progress: Progress | None
    """Is told how many images have been looked at, of how many."""


class SourceKeywords(ReadKeywords, total=False):
    """Those and what only some kinds of source know."""

    images: str | Path | None
    """Folder of the images of a JSON file or table."""
    annotations: str | Path | None
    """VQAv2's annotations."""
    streaming: bool
    """Read a data set of the hub while training."""


def read_options(**keywords: Unpack[ReadKeywords]) -> ReadOptions:
    """What is asked of a reader.

    Raises:
        UsageError: A keyword is unknown, or ``held_out`` is no share.
        DataError: ``columns`` has unknown fields.
    """
    if any(name not in ReadKeywords.__annotations__ for name in keywords):
        require_known(keywords, SourceKeywords.__annotations__)
        raise UsageError(f"{', '.join(keywords)}: some of these belong to other kinds of sources.")
    return ReadOptions(
        Columns(keywords.get("columns") or {}, keywords.get("group_by")),
        keywords.get("held_out", DEFAULT_HELD_OUT),
        keywords.get("skip_bad_rows", False),
        keywords.get("progress"),
    )


class Gathering:
    """What has been found so far, in the order of the data."""

    def __init__(
        self, shown: str, label: str, options: ReadOptions, hint: str = "", folder_parts: PartOf | None = None
    ) -> None:
        """Start with nothing.

        Args:
            shown: What the person typed, for messages.
            label: What records call the data: no path of this machine.
            options: What is asked for.
            hint: What rows should look like.
            folder_parts: The part that an image's folder is called after; it counts where there are several, for a file
                that somebody named may be of one part.
        """
        self._folder_parts = folder_parts
        self.shown, self.label, self.options, self._hint = shown, label, options, hint
        self._found: list[FoundRow | Problem] = []
        self._columns: dict[str, None] = {}

    def take(
        self, spot: Spot, row: Any, image_of: ImageOf, *, part: str | None = None, folder_of: PartOf | None = None
    ) -> None:
        """Read a row; see ``read_row``. What is wrong with it is kept in its place."""
        if isinstance(row, Mapping):
            self._columns.update(dict.fromkeys(row))
        folder_of = folder_of or self._folder_parts or no_part
        try:
            self._found.append(read_row(row, self.options.columns, spot, image_of, part=part, folder_of=folder_of))
        except MalformedRow as wrong:
            self.refuse(spot, wrong)

    def refuse(self, spot: Spot, wrong: MalformedRow) -> None:
        """A row that could not even be given to ``take``."""
        self._found.append(Problem.of(spot.place, wrong))

    def splits(self, notes: Counter[str] | None = None, left_unread: Sequence[str] = ()) -> DataSplits:
        """Look at the images and divide the rows.

        Args:
            notes: What was read otherwise than it is written, and how often.
            left_unread: What else there is, in words.

        Raises:
            DataError: There are malformed rows and none may be left out, none is left, a column is in no row, or there
                are both captions and questions.
        """
        self.options.columns.require_in(self.shown, self._columns)
        self._require_one_text()
        divided = self._divided(self._looked_at())
        problems = [row for row in divided if isinstance(row, Problem)]
        rows = [row for row in divided if isinstance(row, FoundRow)]
        hint = self._hint if rows or COLUMNS_HINT in self._hint else f"{self._hint} {COLUMNS_HINT}"
        require_no_problems(self.shown, problems, hint, skip_bad_rows=self.options.skip_bad_rows)
        if not rows:
            raise DataError(self.shown, [*problems, "no row is left" if problems else "it has no rows"], self._hint)
        counts: Counter[Kind] = Counter(kind_of(example) for row in rows for example in row.examples)
        require_one_kind(self.shown, counts)
        lines = [f"{count:,} {what}" for what, count in (notes or Counter()).items()]
        lines += [*left_unread, *said_of_rows(rows, self._columns)]
        return divide(rows, self.options.held_out, self.label, problems, lines)

    def _require_one_text(self) -> None:
        both = [row for row in self._found if isinstance(row, FoundRow) and row.kind == "both"]
        if both:
            problem = f"{len(both)} rows have both a caption and a question, the first: {both[0].spot.place}"
            way_out = "Say which is to be learnt: --columns question=question,answer=answer, or caption=caption."
            raise DataError(self.shown, [problem], f"{way_out} --task asks for questions, a style for captions.")

    def _looked_at(self) -> list[FoundRow | Problem]:
        images = [row.image for row in self._found if isinstance(row, FoundRow)]
        facts = iter(examine(images, self.options.progress))
        return [row.seen(next(facts)) if isinstance(row, FoundRow) else row for row in self._found]

    def _divided(self, found: Sequence[FoundRow | Problem]) -> list[FoundRow | Problem]:
        """Every row with the part it belongs to.

        Files for several parts say it, and no column may contradict them; else its own column, where there is one; else
        the folder of its image.
        """
        rows = [row for row in found if isinstance(row, FoundRow)]
        parts = {row.part for row in rows}
        if len(parts) == 1 and any(part_called(row.split or "") for row in rows):
            return [part_by_column(row) if isinstance(row, FoundRow) else row for row in found]
        folders_count = self._folder_parts is None or len({row.folder for row in rows} - {None}) > 1
        several = len({row.part or (row.folder if folders_count else None) for row in rows}) > 1
        return [
            _part_by_place(row, folders_count, required=several) if isinstance(row, FoundRow) else row for row in found
        ]


def said_of_rows(rows: Sequence[FoundRow], columns: Collection[str]) -> list[str]:
    """What is learnt otherwise than its owner may think."""
    return [*_unused_splits(rows), *_unused_folders(rows), *_lists_as_text(rows), *_places_as_answers(rows, columns)]


def _unused_folders(rows: Sequence[FoundRow]) -> list[str]:
    """Where the column of parts says otherwise than the folder of an image."""
    others = [row for row in rows if row.folder is not None and row.part != row.folder]
    if not others:
        return []
    first = f"the first is {others[0].part} in a folder of {others[0].folder}"
    return [f"the part of {len(others):,} rows is what their column says, not the folder of their image: {first}"]


def _places_as_answers(rows: Sequence[FoundRow], columns: Collection[str]) -> list[str]:
    """Answers that only say which of several choices is right; nobody who asks has those choices."""
    column = next((name for name in _CHOICES if name in columns), None)
    answers = {answer for row in rows for example in row.examples for answer in example.answers if answer}
    if column is None or not answers or not all(map(_PLACE.fullmatch, answers)):
        return []
    first = quoted(min(answers))
    return [f"answers such as {first} are learnt as they stand, not as what they point to in {column!r}"]


def _unused_splits(rows: Sequence[FoundRow]) -> list[str]:
    """What a column of parts says, where it names none that is known."""
    said = dict.fromkeys(row.split for row in rows if row.split is not None)
    if not said or any(map(part_called, said)):
        return []
    return [f"the column of parts is not used: it says {', '.join(map(quoted, list(said)[:3]))}, no part that is known"]


def _lists_as_text(rows: Sequence[FoundRow]) -> list[str]:
    """Tables without lists hold them written out; whoever meant several answers would learn brackets and quotes."""
    found = [e.target for row in rows for e in row.examples if _LIST_AS_TEXT.fullmatch(e.target.strip())]
    if not found:
        return []
    return [f"{len(found):,} texts look like lists, as {quoted(found[0])}, and are learnt letter for letter"]


def contradiction(row: FoundRow, part: str) -> Problem | None:
    """What is wrong where a row's own column names another part than the file or split that it is in."""
    if part_called(row.split or "") in (None, part):
        return None
    reason = f"the split is {quoted(row.split)}, in a file or split for {part}"
    return Problem(row.spot.place, reason, "split", quoted(row.split), part)


def part_by_column(row: FoundRow) -> FoundRow | Problem:
    """The row in the part that its own column names."""
    part = part_called(row.split or "")
    if part is not None:
        return replace(row, part=part)
    wanted = ", ".join(PART_NAMES)
    reason = f"the split is {quoted(row.split)}, expected one of {wanted}" if row.split else "no split, as others have"
    return Problem(row.spot.place, reason, "split", quoted(row.split), wanted)


def _part_by_place(row: FoundRow, folders_count: bool, *, required: bool) -> FoundRow | Problem:
    part = row.part or (row.folder if folders_count else None)
    if part is not None:
        return contradiction(row, part) or replace(row, part=part, folder=part)
    if not required:
        return replace(row, part=None, folder=None)
    wanted = "an image in train/, validation/ or test/"
    reason = f"its image is in no folder of a part, as others are; expected {wanted}, or no folder of such a name"
    return Problem(row.spot.place, reason, "image", wanted=wanted)


def divide(
    rows: Sequence[FoundRow], held_out: float, label: str, problems: Sequence[Problem], notes: Sequence[str]
) -> DataSplits:
    """Rows to the examples of each part.

    Parts that the data bring along are theirs. Without a validation part a share of the training images is held out.
    Training rows whose image or group is also in another part are left out.
    """
    validation = [row for row in rows if row.part == VALIDATION]
    test = [row for row in rows if row.part == TEST]
    given = [row for row in rows if row.part in (None, TRAIN)]
    train = _without(given, [*validation, *test])
    brought = bool(validation)
    if not brought:
        chosen = held_out_images([row.digest for row in train], held_out, [row.group for row in train])
        validation = [row for row in train if row.digest in chosen]
        left = [row for row in train if row.digest not in chosen]
    else:
        left = train
    kept = {id(row) for row in train}
    shared = _examples([row for row in given if id(row) not in kept])
    return DataSplits(
        train=_examples(left),
        validation=_examples(validation),
        source=label,
        skipped=tuple(problems),
        duplicates=len(shared),
        test=_examples(test),
        notes=tuple(notes),
        shared=shared,
        held_out=None if brought else held_out,
    )


def _without(rows: Sequence[FoundRow], others: Sequence[FoundRow]) -> list[FoundRow]:
    """The rows that share no image and no group with the others, by way of no third row either."""
    left, shared = list(rows), list(others)
    while shared:
        images, groups = {row.digest for row in shared}, {row.group for row in shared if row.group is not None}
        apart = [row.digest not in images and row.group not in groups for row in left]
        shared = [row for row, kept in zip(left, apart, strict=True) if not kept]
        left = [row for row, kept in zip(left, apart, strict=True) if kept]
        if all(row.group is None for row in shared):
            break
    return left


def _examples(rows: Sequence[FoundRow]) -> list[Example]:
    return [example for row in rows for example in row.examples]
