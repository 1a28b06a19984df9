"""Data that are read while they are trained on: the same images are held out as when all is read first.

The first rows are looked at before the run: the held-out images among them are the validation part, and a short set is
known whole. While training, each row's image is looked at, and held-out ones are passed over.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from lorax_vlm.data.examples import DataSplits, Example, Kind, kind_of, require_one_kind
from lorax_vlm.data.image_facts import examine
from lorax_vlm.data.problems import Problem, require_no_problems
from lorax_vlm.data.readers.columns import COLUMNS_HINT
from lorax_vlm.data.readers.embedded import embedded_image, iterate
from lorax_vlm.data.readers.gathering import ReadOptions, part_by_column
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import FoundRow, Spot, read_row
from lorax_vlm.data.splitting import (
    TEST,
    TRAIN,
    VALIDATION,
    held_out_images,
    held_out_rank,
    is_held_out,
    part_called,
)
from lorax_vlm.errors import DataError, MalformedRow

_MOST_SCANNED = 20_000


@dataclass(frozen=True)
class StreamSource:
    """What is streamed, and how."""

    shown: str
    label: str
    options: ReadOptions
    files: tuple[ImageFiles, ...]
    validation_count: int
    shuffle_buffer: int

    def read(self, split: str, number: int, row: Mapping[str, Any], *, shuffled: bool = False) -> FoundRow | Problem:
        """A row with its image looked at, or what is wrong with it."""
        where = f"row {number} as streamed" if shuffled else str(number)
        spot = Spot(f"{self.shown}:{split}[{where}]", f"{self.label}:{split}[{where}]")
        image_of = partial(embedded_image, columns=self.options.columns, files=self.files)
        try:
            found = read_row(row, self.options.columns, spot, image_of)
        except MalformedRow as wrong:
            return Problem.of(spot.place, wrong)
        if found.kind == "both":
            return Problem(spot.place, "both a caption and a question", "question", wanted="one of them: --columns")
        return found.seen(examine([found.image])[0])

    def require_sound(self, problems: Sequence[Problem]) -> None:
        """Stop at malformed rows, unless they are to be left out."""
        require_no_problems(self.shown, problems, COLUMNS_HINT, skip_bad_rows=self.options.skip_bad_rows)


@dataclass(frozen=True)
class _Division:
    """Which part each row of the training split belongs to."""

    by_column: bool
    """The rows say it themselves."""
    apart: frozenset[str]
    """Images of other splits, and of rows that say they are of another part."""
    held_out: Callable[[str], bool]

    def placed(self, row: FoundRow) -> FoundRow | Problem:
        """The row with its part; None for an image that another part has."""
        if self.by_column:
            said = part_by_column(row)
            if isinstance(said, Problem) or said.part != TRAIN:
                return said
        part = None if row.digest in self.apart else VALIDATION if self.held_out(row.digest) else TRAIN
        return replace(row, part=part)


@dataclass
class StreamedExamples(Iterable[Example]):
    """Training examples read as they are needed."""

    source: StreamSource
    split: str
    rows: Any
    kind: Kind
    division: _Division
    left_out: int = 0
    """Examples of the last reading that were passed over because their image is held out."""
    problems: list[Problem] = field(default_factory=list)
    """Malformed rows of the last reading that were left out on request."""

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A row is malformed and none may be left out, or it cannot be read on.
        """
        self.left_out, self.problems = 0, []
        for number, row in iterate(self.source.shown, self.rows):
            found = self._placed(number, row)
            if isinstance(found, Problem):
                self.source.require_sound([found])
                self.problems.append(found)
            elif found.part == TRAIN:
                yield from found.examples
            else:
                self.left_out += len(found.examples)

    def _placed(self, number: int, row: Mapping[str, Any]) -> FoundRow | Problem:
        found = self.source.read(self.split, number, row, shuffled=True)
        if isinstance(found, Problem):
            return found
        if found.kind != self.kind:
            return Problem(found.spot.place, f"{found.kind} among {self.kind}", wanted=self.kind)
        return self.division.placed(found)


@dataclass
class _Head:
    """The first rows of a split."""

    rows: list[FoundRow] = field(default_factory=list)
    """Without their images where they will not be validated on."""
    problems: list[Problem] = field(default_factory=list)
    columns: dict[str, None] = field(default_factory=dict)
    whole: bool = False
    """Whether these were all."""


def stream_splits(source: StreamSource, splits: Mapping[str, Any]) -> DataSplits:
    """The parts of a stream.

    Raises:
        DataError: The first rows are malformed, or there are none.
    """
    by_part = {part_called(name) or TRAIN: name for name in splits} if len(splits) > 1 else {TRAIN: next(iter(splits))}
    heads = {part: _head(source, by_part[part], splits) for part in (VALIDATION, TEST) if part in by_part}
    rows = {part: heads[part].rows if part in heads else [] for part in (VALIDATION, TEST)}
    train: Sequence[Example] | StreamedExamples = ()
    if TRAIN in by_part:
        name = by_part[TRAIN]
        heads[TRAIN] = head = _scan(source, name, splits, validated=VALIDATION in heads)
        division = _divide(source, head, heads, single=len(splits) == 1)
        placed = [division.placed(row) for row in head.rows]
        head.problems += [row for row in placed if isinstance(row, Problem)]
        known = [row for row in placed if isinstance(row, FoundRow)]
        for part in (VALIDATION, TEST):
            rows[part] = rows[part] or [row for row in known if row.part == part]
        if any(row.part == TRAIN for row in known):
            shuffled = splits[name].shuffle(seed=0, buffer_size=source.shuffle_buffer)
            train = StreamedExamples(source, name, shuffled, kind_of(known[0].examples[0]), division)
    return _put_together(source, heads, rows, train)


def _put_together(
    source: StreamSource,
    heads: Mapping[str, _Head],
    rows: Mapping[str, Sequence[FoundRow]],
    train: Sequence[Example] | StreamedExamples,
) -> DataSplits:
    problems = [problem for head in heads.values() for problem in head.problems]
    source.options.columns.require_in(source.shown, {name: None for head in heads.values() for name in head.columns})
    source.require_sound(problems)
    counts = Counter(kind_of(e) for head in heads.values() for row in head.rows for e in row.examples)
    if not counts:
        raise DataError(source.shown, [*problems, "no row is left" if problems else "it has no rows"], COLUMNS_HINT)
    require_one_kind(source.shown, counts)
    parts = {part: [e for row in some[: source.validation_count] for e in row.examples] for part, some in rows.items()}
    return DataSplits(train, parts[VALIDATION], source.label, tuple(problems), test=parts[TEST])


def _head(source: StreamSource, name: str, splits: Mapping[str, Any]) -> _Head:
    """As many sound rows of a split as are validated on."""
    head = _Head()
    for number, row in iterate(source.shown, splits[name]):
        head.columns.update(dict.fromkeys(row))
        found = source.read(name, number, row)
        if isinstance(found, Problem):
            head.problems.append(found)
            continue
        head.rows.append(found)
        if len(head.rows) >= source.validation_count:
            break
    return head


def _scan(source: StreamSource, name: str, splits: Mapping[str, Any], *, validated: bool) -> _Head:
    """The first rows of the split that is trained on, until enough of them are held out; one if there is no need."""
    head, held_out, least = _Head(), 0, 2**64
    for number, row in iterate(source.shown, splits[name]):
        if number >= _MOST_SCANNED or held_out >= source.validation_count or (validated and head.rows):
            return head
        head.columns.update(dict.fromkeys(row))
        found = source.read(name, number, row)
        if isinstance(found, Problem):
            head.problems.append(found)
            continue
        rank, column = held_out_rank(found.digest), part_called(found.split or "")
        chosen = column in (VALIDATION, TEST) or is_held_out(found.digest, source.options.held_out)
        head.rows.append(found if chosen or rank <= least else _without_image(found))
        held_out += chosen
        least = min(least, rank)  # the least may be all there is to hold out
    head.whole = True
    return head


def _without_image(row: FoundRow) -> FoundRow:
    return replace(row, image=b"", examples=tuple(replace(example, image=b"") for example in row.examples))


def _divide(source: StreamSource, head: _Head, heads: Mapping[str, _Head], *, single: bool) -> _Division:
    said = [part_called(row.split or "") for row in head.rows]
    by_column = single and any(said)
    others = [row for part, other in heads.items() if part != TRAIN for row in other.rows]
    others += [row for row, part in zip(head.rows, said, strict=True) if by_column and part != TRAIN]
    apart, share = frozenset(row.digest for row in others), source.options.held_out
    if VALIDATION in heads or (by_column and VALIDATION in said):
        return _Division(by_column, apart, lambda _: False)
    if head.whole:
        chosen = held_out_images([row.digest for row in head.rows if row.digest not in apart], share)
        return _Division(by_column, apart, chosen.__contains__)
    return _Division(by_column, apart, lambda digest: is_held_out(digest, share))
