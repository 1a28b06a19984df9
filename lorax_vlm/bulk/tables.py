"""Tables of all texts, and the list of what failed: written whole from the journal at the end of a run. No torch."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_ROWS_AT_ONCE = 10_000


def require_own_tables(order: BulkOrder, journal: Journal) -> None:
    """Nothing is lost by writing the tables: what is there was written here.

    Raises:
        PathError: There is somebody else's file, or it cannot be looked at.
    """
    for path in [*map(order.table, order.tables), order.failed]:
        with naming(path):
            ours = not path.exists() or _is_ours(path, journal.file(path.name))
        if not ours and order.existing != "overwrite-all":
            other = f"Name another {'file' if order.file else 'folder'}, --out"
            hint = f"{other}." if order.questions else f"{other}; or let it be written over, --existing overwrite-all."
            raise PathError(str(path), "it is there already, and not as it was written here", hint)


def _is_ours(path: Path, written: Written | None) -> bool:
    if written is None:
        return False
    return written.stamp == Stamp.of(os.stat(path)) or written.digest == _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rows(order: BulkOrder, journal: Journal) -> Iterator[dict[str, Any]]:
    """A row for each item about which everything that is asked was said, in the order of the items."""
    one, word = order.labels[0] if len(order.labels) == 1 else None, "answer" if order.questions else "caption"
    first = next(iter(order.items), None)
    taken = first is not None and word in first.row  # such as the right answer
    for item, before in looked_up(order.items, journal):
        said = holding(item, order.columns, before)
        if len(said) < len(order.columns):
            continue
        row: dict[str, Any] = dict(item.row) or {"file_name": printable(item.name)}
        if (one is not None and not taken) or order.pick is not None:
            label = one or chosen_label(said, order.pick)
            row[f"{word}_picked" if taken else word] = order.text(item, label, said[label].text)
        if one is None or taken:
            row |= {f"{word}_{label}": order.text(item, label, text.text) for label, text in said.items()}
        if order.likelihood:
            row |= {"likelihood" if one else f"likelihood_{label}": text.likelihood for label, text in said.items()}
        row["image_sha256"] = next(iter(said.values())).image
        row |= {"adapter" if one else f"adapter_{label}": text.adapter for label, text in said.items()}
        row["lorax_vlm"] = __version__
        yield row


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
    state = [identity, journal.changes]
    for kind in order.tables:
        path = order.table(kind)
        if journal.fact(path.name) == state and path.exists() and _is_ours(path, journal.file(path.name)):
            continue
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                counts[str(path)] = _WRITERS[kind](rows(order, journal), file)
        _note(journal, path, {path.name: state})
    return counts


def _note(journal: Journal, path: Path, facts: Mapping[str, Any]) -> None:
    with naming(path):
        digest, stamp = _digest(path), Stamp.of(os.stat(path))
    with journal.changing():
        journal.note_file(path.name, Written(_ABOUT_TABLE, digest, None, stamp))
        journal.note_facts(facts)


def write_failures(
    order: BulkOrder, journal: Journal, missing: Callable[[], Iterable[Item]]
) -> tuple[int, Path | None]:
    """Write the list of what failed, or remove the former one where nothing did; how many there are, and where.

    Args:
        order: What is wanted.
        journal: What failed, at any time.
        missing: Gives the items about which something is still to be said.

    Raises:
        PathError: It cannot be written.
    """
    path, known = order.failed, journal.failures()
    items = missing() if known else ()
    failed = [(item.place or item.name, *known[item.name]) for item in items if item.name in known]
    with naming(path):
        if not failed:
            path.unlink(missing_ok=True)
            return 0, None
        with written_whole(path) as file:
            lines = ({"file_name": printable(name), "error": kind, "reason": why} for name, kind, why in failed)
            _write_csv(lines, file)
    _note(journal, path, {})
    return len(failed), path


# --- formats --------------------------------------------------------------------------------------------------------


def _write_jsonl(found: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
    count = 0
    for row in found:
        file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n")
        count += 1
    return count


def _write_csv(found: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
    text, writer, count = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline=""), None, 0
    for row in found:
        if writer is None:
            writer = csv.DictWriter(text, list(row), restval="", extrasaction="raise")
            writer.writeheader()
        writer.writerow(row)
        count += 1
    text.flush()
    text.detach()
    return count


def _write_parquet(found: Iterable[Mapping[str, Any]], file: BinaryIO) -> int:
    import pyarrow
    from pyarrow import parquet

    source, writer, count = iter(found), None, 0
    try:
        while some := list(islice(source, _ROWS_AT_ONCE)):
            schema = writer.schema if writer is not None else None
            table = pyarrow.Table.from_pylist(some, schema=schema)
            writer = writer or parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
            count += len(some)
        if writer is None:
            writer = parquet.ParquetWriter(file, pyarrow.schema([("file_name", pyarrow.string())]))
    finally:
        if writer is not None:
            writer.close()
    return count


_WRITERS = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}
