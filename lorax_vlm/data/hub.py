"""Data sets of the Hugging Face hub, or folders ``datasets`` reads: columns by name, streamed if large."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.splitting import make_splits
from lorax_vlm.errors import DataError

FIELDS = ("image", "question", "answer", "caption", "type")
_HINT = (
    "Say which column is which: --columns image=picture,question=q,answer=a (or caption=text instead of the latter)."
)


def read_hub_dataset(
    name: str,
    *,
    columns: Mapping[str, str] | None = None,
    split: str = "train",
    validation_split: str | None = None,
    validation_count: int = 200,
    streaming: bool = False,
    shuffle_buffer: int = 1000,
    skip_bad_rows: bool = False,
) -> DataSplits:
    """Read a data set by hub id, by folder, or by a script ``datasets`` knows.

    Args:
        name: As for ``datasets.load_dataset``.
        columns: Our fields (``image``, ``question`` and ``answer``, or ``caption``; ``type``) by their column. An
            answer column may hold a list: what each annotator said.
        split: Split to train on.
        validation_split: Split to validate on. None: the first ``validation_count`` rows of ``split`` are held out.
        validation_count: Number of validation rows.
        streaming: Read rows while training instead of downloading all first; bad rows then stop the run when met.
        shuffle_buffer: Rows to shuffle among when streaming.
        skip_bad_rows: Leave malformed rows out.

    Raises:
        DataError: It cannot be loaded, a column is missing, or rows are malformed.
    """
    known = {field: field for field in FIELDS} | dict(columns or {})
    unknown = set(columns or {}) - set(FIELDS)
    if unknown:
        raise DataError(name, [f"unknown fields {', '.join(sorted(unknown))}; known: {', '.join(FIELDS)}"], _HINT)
    rows = _load(name, split, streaming)
    problems: list[str] = []
    if validation_split is not None:
        held_out, skip = _load(name, validation_split, streaming), 0
    else:
        held_out, skip = rows, validation_count
    validation = list(
        _examples(islice(held_out, validation_count), known, f"{name}:{validation_split or split}", problems)
    )
    if streaming:
        if problems and not skip_bad_rows:
            raise DataError(name, problems, _HINT)
        stream = rows.skip(skip).shuffle(seed=0, buffer_size=shuffle_buffer)
        train = StreamedRows(stream, known, f"{name}:{split}", skip_bad_rows)
        return DataSplits(train, validation, name, tuple(problems))
    train_rows = list(_examples(islice(rows, skip, None), known, f"{name}:{split}", problems, first=skip))
    return make_splits(train_rows, validation, name, problems, skip_bad_rows=skip_bad_rows, hint=_HINT)


def _load(name: str, split: str, streaming: bool) -> Any:
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, split=split, streaming=streaming)
    except (DatasetNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(name, [f"it cannot be loaded: {reason}"]) from error
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):  # bytes and paths, so that our own reading of images applies
            rows = rows.cast_column(column, Image(decode=False))
    return rows


@dataclass(frozen=True)
class StreamedRows(Iterable[Example]):
    """Training examples read as they are needed."""

    rows: Any
    columns: Mapping[str, str]
    source: str
    skip_bad_rows: bool

    def __iter__(self) -> Iterator[Example]:
        """Read from the start.

        Raises:
            DataError: A row is malformed and none may be left out.
        """
        for index, row in enumerate(self.rows):
            problems: list[str] = []
            yield from _examples([row], self.columns, self.source, problems, first=index)
            if problems and not self.skip_bad_rows:
                raise DataError(self.source, problems, _HINT)


def _examples(
    rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str], source: str, problems: list[str], first: int = 0
) -> Iterator[Example]:
    for index, row in enumerate(rows, start=first):
        place = f"{source}[{index}]"
        image = _image(row.get(columns["image"]))
        question, answer, caption = (row.get(columns[field]) for field in ("question", "answer", "caption"))
        answers: list[Any] = answer if isinstance(answer, list) else [answer]
        if image is None:
            problems.append(f"{place}: no image in column {columns['image']!r} (columns: {', '.join(row)})")
        elif question is not None:
            if not question.strip() or not all(isinstance(text, str) and text.strip() for text in answers):
                problems.append(f"{place}: question or answer is empty or not text")
            else:
                yield answered(image, question, answers, place, str(row.get(columns["type"]) or ""))
        elif isinstance(caption, str) and caption.strip():
            yield Example(image, caption, place)
        else:
            problems.append(f"{place}: neither question nor caption (columns: {', '.join(row)})")


def _image(value: Any) -> Any:
    if isinstance(value, dict):  # an undecoded image of ``datasets``
        return value.get("bytes") or (Path(value["path"]) if value.get("path") else None)
    return value
