"""Data that are read while they are trained on: the same images are held out as when all is read first.

The first rows are looked at before the run: the held-out images among them are the validation part, and a short set is
known whole. Of splits (or rows, by a column) that belong to other parts every image is looked at, so that none of them
is trained on. While training, each row's image is looked at, and held-out ones are passed over.

No torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lorax_vlm.data.examples import DataSplits, Example, Kind, kind_of, require_one_kind
from lorax_vlm.data.image_facts import Stored, examine, example_digest
from lorax_vlm.data.problems import Problem, require_no_problems
from lorax_vlm.data.readers.columns import COLUMNS_HINT
from lorax_vlm.data.readers.embedded import embedded_image, iterate
from lorax_vlm.data.readers.gathering import ReadOptions, contradiction, part_by_column, said_of_rows
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import FoundRow, Spot, read_row
from lorax_vlm.data.readers.values import written_out
from lorax_vlm.data.splitting import (
    TEST,
    TRAIN,
    VALIDATION,
    held_out_images,
    held_out_rank,
    is_held_out,
    part_called,
)
from lorax_vlm.errors import DataError, ImageError, MalformedRow
from lorax_vlm.foreign import quoted

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
        try:
            found = read_row(row, self.options.columns, spot, self._image_of)
        except MalformedRow as wrong:
            return Problem.of(spot.place, wrong)
        if found.kind == "both":
            return Problem(spot.place, "both a caption and a question", "question", wanted="one of them: --columns")
        return found.seen(examine([found.image])[0])

    def part_said(self, row: Mapping[str, Any]) -> str | None:
        """The part that a row's own column names."""
        said = written_out(self.options.columns.get(row, "split"))
        return part_called(said) if said is not None else None

    def digest(self, row: Mapping[str, Any]) -> str | None:
        """Of the content of a row's image, whatever else is wrong with the row; None where there is none to be read."""
        try:
            return example_digest(self._image_of(row))
        except (MalformedRow, ImageError):
            return None

    def _image_of(self, row: Mapping[str, Any]) -> Stored:
        return embedded_image(row, self.options.columns, self.files)

    def require_sound(self, problems: Sequence[Problem]) -> None:
        """Stop at malformed rows, unless they are to be left out."""
        require_no_problems(self.shown, problems, COLUMNS_HINT, skip_bad_rows=self.options.skip_bad_rows)


@dataclass(frozen=True)
class _Division:
    """Which part each row of the training split belongs to."""

    by_column: bool
    """The rows say it themselves."""
    single: bool
    """All are of one part, so whatever a row says itself would count."""
    apart: frozenset[str]
    """All images of other splits, and of rows that say they are of another part."""
    held_out: Callable[[str], bool]

    def trains(self, row: FoundRow) -> bool:
        """Whether a row is to be trained on, as far as its image is not held out."""
        return not self.by_column or part_called(row.split or "") == TRAIN

    def placed(self, row: FoundRow) -> FoundRow | Problem:
        """The row with its part; None for an image that another part has."""
        if self.by_column:
            said = part_by_column(row)
            if isinstance(said, Problem) or said.part != TRAIN:
                return said
        elif self.single and part_called(row.split or "") is not None:
            reason = f"the split is {quoted(row.split)}, and the first rows name no part that is known"
            return Problem(row.spot.place, reason, "split", quoted(row.split), "a part in every row or in none")
        elif (wrong := contradiction(row, TRAIN)) is not None:
            return wrong
        part = None if row.digest in self.apart else VALIDATION if self.held_out(row.digest) else TRAIN
        return replace(row, part=part)


@dataclass
class StreamedExamples(Iterable[Example]):
    """Training examples read as they are needed."""

    source: StreamSource
    splits: Mapping[str, Any]
    """The rows of each split to train on, one split after the other."""
    kind: Kind
    division: _Division
    refused: Counter[str] = field(default_factory=Counter)
    """The malformed rows that are known and listed already, by their content."""
    left_out: int = 0
    """Examples of the last reading that were passed over because their image is held out."""
    _found: dict[str, Problem] = field(default_factory=dict)

    @property
    def problems(self) -> list[Problem]:
        """Further malformed rows of all readings that were left out on request, each once."""
        return list(self._found.values())

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A row is malformed and none may be left out, or it cannot be read on.
        """
        self.left_out, listed = 0, self.refused.copy()
        for split, rows in self.splits.items():
            for number, row in iterate(self.source.shown, rows):
                found = self._placed(split, number, row)
                if isinstance(found, Problem):
                    self.source.require_sound([found])
                    content = repr(row)
                    if listed[content]:
                        listed[content] -= 1
                    else:
                        self._found[found.place] = found
                elif found.part == TRAIN:
                    yield from found.examples
                else:
                    self.left_out += len(found.examples)

    def _placed(self, split: str, number: int, row: Mapping[str, Any]) -> FoundRow | Problem:
        found = self.source.read(split, number, row, shuffled=True)
        if isinstance(found, Problem):
            return found
        if found.kind != self.kind:
            return Problem(found.spot.place, f"{found.kind} among {self.kind}", wanted=self.kind)
        return self.division.placed(found)


@dataclass
class _Head:
    """The first rows of the splits of a part."""

    rows: list[FoundRow] = field(default_factory=list)
    """Without their images where they will not be validated on."""
    problems: list[Problem] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """The content of the malformed rows."""
    columns: dict[str, None] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)
    """Images that may not be trained on."""
    whole: bool = False
    """Whether these were all."""


def stream_splits(source: StreamSource, splits: Mapping[str, Any]) -> DataSplits:
    """The parts of a stream.

    Raises:
        DataError: The first rows are malformed, or there are none.
    """
    by_part: dict[str, dict[str, Any]] = {}
    for name, rows in splits.items():
        by_part.setdefault(part_called(name) or TRAIN, {})[name] = rows
    alone = len(by_part) == 1  # what is of one part only may say otherwise row by row, as when all is read
    heads = {
        part: _head(source, by_part[part], part, all_images=TRAIN in by_part, alone=alone)
        for part in (VALIDATION, TEST)
        if part in by_part
    }
    if alone and any(part_called(row.split or "") for head in heads.values() for row in head.rows):
        heads, by_part = {}, {TRAIN: dict(splits)}
    found = {part: heads[part].rows if part in heads else [] for part in (VALIDATION, TEST)}
    train: Sequence[Example] | StreamedExamples = ()
    if TRAIN in by_part:
        heads[TRAIN] = head = _scan(source, by_part[TRAIN], validated=VALIDATION in heads, by_column=alone)
        division = _divide(source, head, heads, alone=alone)
        placed = [division.placed(row) for row in head.rows]
        head.problems += [row for row in placed if isinstance(row, Problem)]
        known = [row for row in placed if isinstance(row, FoundRow)]
        for part in (VALIDATION, TEST):
            found[part] = found[part] or [row for row in known if row.part == part]
        if any(row.part == TRAIN or (not head.whole and division.trains(row)) for row in known):
            shuffled = {
                name: rows.shuffle(seed=0, buffer_size=source.shuffle_buffer) for name, rows in by_part[TRAIN].items()
            }
            train = StreamedExamples(source, shuffled, kind_of(known[0].examples[0]), division, head.refused)
    return _put_together(source, heads, found, train)


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
    seen = [row for head in heads.values() for row in head.rows]
    notes = said_of_rows(seen, {name for head in heads.values() for name in head.columns})
    return DataSplits(train, parts[VALIDATION], source.label, tuple(problems), test=parts[TEST], notes=tuple(notes))


def _numbered(source: StreamSource, splits: Mapping[str, Any]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """The rows of several splits, with the split and their number in it."""
    for name, rows in splits.items():
        for number, row in iterate(source.shown, rows):
            yield name, number, row


def _head(source: StreamSource, splits: Mapping[str, Any], part: str, *, all_images: bool, alone: bool) -> _Head:
    """As many sound rows of a part as are validated on.

    Args:
        source: What is streamed.
        splits: Those of the part.
        part: Its name.
        all_images: The digests of all others, too, that none may be trained on.
        alone: There is no other part, so rows may say themselves which they are of.
    """
    head = _Head()
    for name, number, row in _numbered(source, splits):
        if len(head.rows) >= source.validation_count:
            if not all_images:
                break
            if digest := source.digest(row):
                head.apart.add(digest)
            continue
        head.columns.update(dict.fromkeys(row))
        found = source.read(name, number, row)
        if isinstance(found, FoundRow) and not alone:
            found = contradiction(found, part) or found
        if isinstance(found, FoundRow):
            head.rows.append(found)
            head.apart.add(found.digest)
        else:
            head.problems.append(found)
    return head


def _scan(source: StreamSource, splits: Mapping[str, Any], *, validated: bool, by_column: bool) -> _Head:
    """The first rows of what is trained on, until enough of them are held out; one if there is no need.

    Args:
        source: What is streamed.
        splits: Those to train on.
        validated: Others bring validation rows along.
        by_column: Rows may say themselves which part they are of. Where they do, all are read: images that may not be
            trained on can come at any place.
    """
    head, held_out, least = _Head(), 0, 2**64
    numbered = _numbered(source, splits)
    for count, (name, number, row) in enumerate(numbered, start=1):
        head.columns.update(dict.fromkeys(row))
        found = source.read(name, number, row)
        if isinstance(found, Problem):
            head.problems.append(found)
            head.refused[repr(row)] += 1
        else:
            rank, column = held_out_rank(found.digest), part_called(found.split or "")
            chosen = column in (VALIDATION, TEST) or is_held_out(found.digest, source.options.held_out)
            head.rows.append(found if chosen or rank <= least else _without_image(found))
            held_out += chosen
            least = min(least, rank)  # the least may be all there is to hold out
        if count >= _MOST_SCANNED or held_out >= source.validation_count or (validated and head.rows):
            break
    else:
        head.whole = True
    if by_column and any(part_called(row.split or "") for row in head.rows):
        _scan_column(source, numbered, head)
    return head


def _scan_column(source: StreamSource, numbered: Iterator[tuple[str, int, Mapping[str, Any]]], head: _Head) -> None:
    """The rest of rows that say their part themselves: all images of other parts, and enough rows of each part."""
    kept = Counter(part_called(row.split or "") for row in head.rows)
    for name, number, row in numbered:
        part = source.part_said(row)
        if part is None or kept[part] >= (1 if part == TRAIN else source.validation_count):
            if part in (VALIDATION, TEST) and (digest := source.digest(row)):
                head.apart.add(digest)
            continue
        found = source.read(name, number, row)
        if isinstance(found, Problem):
            head.problems.append(found)
            head.refused[repr(row)] += 1
        else:
            head.rows.append(_without_image(found) if part == TRAIN else found)
            kept[part] += 1


def _without_image(row: FoundRow) -> FoundRow:
    return replace(row, image=b"", examples=tuple(replace(example, image=b"") for example in row.examples))


def _divide(source: StreamSource, head: _Head, heads: Mapping[str, _Head], *, alone: bool) -> _Division:
    said = [part_called(row.split or "") for row in head.rows]
    by_column = alone and any(said)
    others = {digest for part, other in heads.items() if part != TRAIN or by_column for digest in other.apart}
    others |= {row.digest for row, part in zip(head.rows, said, strict=True) if by_column and part != TRAIN}
    apart, share = frozenset(others), source.options.held_out
    if VALIDATION in heads or (by_column and VALIDATION in said):
        return _Division(by_column, alone, apart, lambda _: False)
    if head.whole:
        chosen = held_out_images([row.digest for row in head.rows if row.digest not in apart], share)
        return _Division(by_column, alone, apart, chosen.__contains__)
    return _Division(by_column, alone, apart, lambda digest: is_held_out(digest, share))
