"""Tables of all texts, and the list of what failed: written whole from the journal at the end of a run. No torch."""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lorax_vlm import __version__
from lorax_vlm.bulk.items import Item
from lorax_vlm.bulk.journal import Journal, Stamp, Written
from lorax_vlm.bulk.order import BulkOrder
from lorax_vlm.bulk.sidecars import chosen_label
from lorax_vlm.bulk.standing import holding, looked_up
from lorax_vlm.errors import PathError
from lorax_vlm.foreign import printable
from lorax_vlm.paths import naming, written_whole

_ABOUT_TABLE = "table"
_COMING = "coming "
"""Before the names of files, fact: digest of what is about to be put there."""
_ROWS_AT_ONCE = 10_000


def require_own_tables(order: BulkOrder, journal: Journal) -> None:
    """Nothing is lost by writing the tables: what is there was written here.

    Raises:
        PathError: There is somebody else's file, or it cannot be looked at.
    """
    for path in [*map(order.table, order.tables), order.failed]:
        with naming(path):
            ours = not path.exists() or _is_ours(path, journal)
        if not ours and order.existing != "overwrite-all":
            hint = _way_out(order, "file" if order.file else "folder")
            raise PathError(str(path), "it is there already, and not as it was written here", hint)


def _way_out(order: BulkOrder, noun: str) -> str:
    """What to do about an output that is another's; ``ask`` has no option for what is there."""
    other = f"Name another {noun}, --out"
    return f"{other}." if order.questions else f"{other}; or let it be written over, --existing overwrite-all."


def _is_ours(path: Path, journal: Journal) -> bool:
    """Whether a file is as it was written here, or was about to be when its process was killed."""
    written, coming = journal.file(path.name), journal.fact(_COMING + path.name)
    if written is not None and written.stamp == Stamp.of(os.stat(path)):
        return True
    return (written is not None or coming is not None) and _digest(path) in (written and written.digest, coming)


def _announce(journal: Journal, path: Path, file: BinaryIO) -> None:
    """Note what is about to be put into a place, so that whoever is killed then knows it again."""
    file.flush()
    with journal.changing():
        journal.note_facts({_COMING + path.name: _digest(Path(file.name))})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows(order: BulkOrder, journal: Journal, theirs: Collection[str]) -> Iterator[dict[str, Any]]:
    """A row for each item about which everything that is asked was said, in the order of the items.

    Args:
        order: What is wanted.
        journal: What was said.
        theirs: The columns of the source. They are kept as they are; ours are called otherwise where one has that name.
    """
    one, word = order.labels[0] if len(order.labels) == 1 else None, "answer" if order.questions else "caption"
    taken = word in theirs  # such as the right answer

    def ours(name: str) -> str:
        return ours(f"{name}_lorax_vlm") if name in theirs else name

    for item, before in looked_up(order.items, journal):
        said = holding(item, order.columns, before)
        if len(said) < len(order.columns):
            continue
        row: dict[str, Any] = dict(item.row) or {"file_name": printable(item.name)}
        if (one is not None and not taken) or order.pick is not None:
            label = one or chosen_label(said, order.pick)
            row[ours(f"{word}_picked" if taken else word)] = order.text(item, label, said[label].text)
        if one is None or taken:
            row |= {ours(f"{word}_{label}"): order.text(item, label, text.text) for label, text in said.items()}
        if order.likelihood:
            row |= {
                ours(f"likelihood_{label}" if one is None else "likelihood"): s.likelihood for label, s in said.items()
            }
        row[ours("image_sha256")] = next(iter(said.values())).image
        row |= {ours("adapter" if one else f"adapter_{label}"): text.adapter for label, text in said.items()}
        row[ours("lorax_vlm")] = __version__
        yield row


def require_own_source(order: BulkOrder, journal: Journal) -> None:
    """Nothing is lost that was said of another source: an output is of one, unless it is to be written over.

    Raises:
        PathError: It is of another one.
    """
    known = journal.fact("source")
    if order.source and known not in (None, order.source) and order.existing != "overwrite-all":
        why = f"what is there is about {known}, not about {order.source}"
        raise PathError(str(order.out), why, _way_out(order, "output"))
    if order.source and known != order.source:
        with journal.changing():
            journal.note_facts({"source": order.source})


def write_tables(order: BulkOrder, journal: Journal, identity: str) -> dict[str, int]:
    """Write the tables that are wanted, where something has changed.

    Args:
        order: What is wanted.
        journal: What was said.
        identity: Of the items and of how they are written; with what the journal holds it decides what is in a table.

    Returns:
        Rows by path of table, of those that were written.

    Raises:
        PathError: One cannot be written.
    """
    counts: dict[str, int] = {}
    failed = hashlib.sha256("\0".join(sorted(journal.failures())).encode("utf-8", "surrogateescape")).hexdigest()
    state = [identity, journal.changes, failed]
    changed = [
        (kind, path)
        for kind, path in ((kind, order.table(kind)) for kind in order.tables)
        if not (journal.fact(path.name) == state and path.exists() and _is_ours(path, journal))
    ]
    # Images of folders and lists have no columns, and there may be very many of them.
    theirs = {name for item in order.items for name in item.row} if changed and order.file else set[str]()
    for kind, path in changed:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                counts[str(path)] = _WRITERS[kind](lambda: rows(order, journal, theirs), file)
                _announce(journal, path, file)
        _note(journal, path, {path.name: state})
    return counts


def _note(journal: Journal, path: Path, facts: Mapping[str, Any]) -> None:
    with naming(path):
        digest, stamp = _digest(path), Stamp.of(os.stat(path))
    with journal.changing():
        journal.note_file(path.name, Written(_ABOUT_TABLE, digest, None, stamp))
        journal.note_facts(facts)


def write_failures(
    order: BulkOrder,
    journal: Journal,
    missing: Callable[[], Iterable[Item]],
    more: Sequence[tuple[str, str, str]] = (),
) -> tuple[int, Path | None]:
    """Write the list of what failed, or remove the former one where nothing did; how many there are, and where.

    Args:
        order: What is wanted.
        journal: What failed, at any time.
        missing: Gives the items about which something is still to be said.
        more: Item, kind and reason of what else went wrong.

    Raises:
        PathError: It cannot be written.
    """
    path, known = order.failed, journal.failures()
    items = missing() if known else ()
    failed = [(item.place or item.name, *known[item.name]) for item in items if item.name in known]
    failed += more
    with naming(path):
        if not failed:
            if path.exists() and _is_ours(path, journal):
                path.unlink()
            return 0, None
        with written_whole(path) as file:
            lines = [{"file_name": printable(name), "error": kind, "reason": why} for name, kind, why in failed]
            _write_csv(lambda: lines, file)
            _announce(journal, path, file)
    _note(journal, path, {})
    return len(failed), path


# --- formats --------------------------------------------------------------------------------------------------------


Rows = Callable[[], Iterable[Mapping[str, Any]]]
"""Gives all rows, each time from the first one on."""


def _write_jsonl(found: Rows, file: BinaryIO) -> int:
    count = 0
    for row in found():
        file.write(json.dumps(_value(row), ensure_ascii=False).encode("utf-8") + b"\n")
        count += 1
    return count


def _write_csv(found: Rows, file: BinaryIO) -> int:
    text, count = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline=""), 0
    names = _columns(found)
    writer = csv.DictWriter(text, names, restval="", extrasaction="raise")
    if names:
        writer.writeheader()
    for row in found():
        writer.writerow(row)
        count += 1
    text.flush()
    text.detach()
    return count


def _write_parquet(found: Rows, file: BinaryIO) -> int:
    import pyarrow
    from pyarrow import parquet

    names = list(_columns(found)) or ["file_name"]
    schema, source, count = _schema(found, names), iter(found()), 0
    with parquet.ParquetWriter(file, schema) as writer:
        while some := list(islice(source, _ROWS_AT_ONCE)):
            values = {name: [_cell(row.get(name), schema.field(name).type) for row in some] for name in names}
            writer.write_table(pyarrow.table(values, schema=schema))
            count += len(some)
    return count


def _columns(found: Rows) -> dict[str, None]:
    """The columns of all rows: later ones may have more than the first."""
    return dict.fromkeys(name for row in found() for name in row)


def _schema(found: Rows, names: Sequence[str]) -> Any:
    """Types that hold all values of each column; text where they are of several kinds."""
    import pyarrow

    types: dict[str, Any] = {}
    source = iter(found())
    while some := list(islice(source, _ROWS_AT_ONCE)):
        for name in names:
            values = [value for row in some if (value := _value(row.get(name))) is not None]
            if not values:
                continue
            try:
                own = pyarrow.array(values).type
                both = [pyarrow.schema([(name, kind)]) for kind in (types.get(name, own), own)]
                types[name] = pyarrow.unify_schemas(both, promote_options="permissive").field(name).type
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
                types[name] = pyarrow.string()
    return pyarrow.schema([(name, types.get(name, pyarrow.string())) for name in names])


def _cell(value: Any, kind: Any) -> Any:
    import pyarrow

    value = _value(value)
    if value is None or not pyarrow.types.is_string(kind) or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _value(value: Any) -> Any:
    """What JSON and tables can hold: numbers that are none and bytes are nothing, half of a letter is written out."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {str(name): _value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_value(part) for part in value]
    if value is None or isinstance(value, bool | int):
        return value
    return None if isinstance(value, bytes) else str(value)


_WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}
