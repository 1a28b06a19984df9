"""What a bulk job has said and written: one SQLite file in its output, so that nothing is said twice or lost. No torch.

Texts come in before any file is written from them. Whoever was killed in between has lost nothing: the next run writes
the files from here.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import RLock
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from lorax_vlm.errors import LoraxError, PathError, one_line
from lorax_vlm.foreign import printable
from lorax_vlm.paths import naming

AT_ONCE = 500
"""Items to look up at a time."""
_SCHEMA_VERSION = 2
_SINCE = {1: "ALTER TABLE texts ADD COLUMN likelihood REAL"}
"""What makes a journal of an older version one of the next."""
_SCHEMA = """
CREATE TABLE images(item BLOB PRIMARY KEY, size INTEGER, changed INTEGER, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE texts(
    item BLOB, label TEXT, image TEXT NOT NULL, adapter TEXT NOT NULL, how TEXT NOT NULL,
    text TEXT NOT NULL, finish TEXT NOT NULL, tokens INTEGER NOT NULL, likelihood REAL, PRIMARY KEY(item, label)
) WITHOUT ROWID;
CREATE TABLE files(
    path BLOB PRIMARY KEY, labels TEXT NOT NULL, digest TEXT NOT NULL, before BLOB, size INTEGER, changed INTEGER
) WITHOUT ROWID;
CREATE TABLE failed(item BLOB PRIMARY KEY, kind TEXT NOT NULL, reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE facts(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Stamp:
    """What a file looks like from outside: while it stays, its content is taken to be the same."""

    size: int
    changed_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stamp":
        """That of a file that was looked at."""
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class SeenImage:
    """An image as it was when it was last read."""

    digest: str
    """SHA-256 of its bytes."""
    stamp: Stamp | None
    """None for what is no file of its own."""


@dataclass(frozen=True)
class Said:
    """A text, and everything that it depends on."""

    image: str
    """Digest of the image."""
    adapter: str
    """Digest of the adapter, or the name of the base."""
    how: str
    """Digest of base, prompt and decoding."""
    text: str
    finish: str
    tokens: int
    likelihood: float | None = None
    """See ``ScoringEngine.likelihoods``; None where it was not asked for."""


@dataclass(frozen=True)
class Written:
    """A file that the job wrote, or was about to write."""

    labels: str
    """Of the columns that it is about."""
    digest: str
    """SHA-256 of its content."""
    before: bytes | None
    """What was there, where the text was added to it."""
    stamp: Stamp | None
    """None until the file was seen in its place."""


@dataclass(frozen=True)
class Known:
    """What was read and said of an item before."""

    seen: SeenImage | None
    """Its image as it was last read."""
    said: dict[str, Said]
    """By label."""


NOTHING = Known(None, {})


def output_in_use(output: str) -> PathError:
    """The error of an output that another process of this machine writes to."""
    hint = "lorax-vlm runs list shows what runs, runs stop ends it."
    return PathError(output, "another process is writing texts there", hint)


class Journal:
    """Open for one process at a time."""

    def __init__(self, path: Path, *, look: bool = False) -> None:
        """Open, and make what is not there.

        Args:
            path: Its file.
            look: Only look: where there is none an empty one is held in memory.

        Raises:
            PathError: It cannot be opened, is damaged, or another process writes to this output.
        """
        self.path, self._changed = path, False
        self._noted: dict[str, list[tuple[object, ...]]] = {}
        self._succeeded: list[tuple[bytes]] = []
        self._turn = RLock()  # one thread reads what is to be done, another writes what was said
        self._lock: BaseFileLock | None = None
        if look and not path.exists():
            self._open(Path(":memory:"))
            return
        self._take(path)

    def _take(self, path: Path) -> None:
        with naming(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock", timeout=0)
        with naming(path.parent):
            try:
                lock.acquire()
            except Timeout:
                raise output_in_use(str(path.parent.parent)) from None
        try:
            with self._guarded():
                self._open(path)
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, *_SINCE, _SCHEMA_VERSION):
            self._db.close()
            raise PathError(str(path), f"it is of version {version} and only {_SCHEMA_VERSION} is known", "Update.")
        self._db.execute("PRAGMA synchronous = FULL")  # one write ahead of each batch of files
        if version == 0:
            with self._changing():
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        for older in range(version or _SCHEMA_VERSION, _SCHEMA_VERSION):
            with self._changing():
                self._db.execute(_SINCE[older])
                self._db.execute(f"PRAGMA user_version = {older + 1}")

    def close(self) -> None:
        """Let others have it."""
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def copy_to(self, path: Path) -> None:
        """A copy of all that is kept, while it is in use.

        Raises:
            PathError: It cannot be written.
        """
        path.unlink(missing_ok=True)
        with self._turn, self._guarded(), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)

    @property
    def changes(self) -> int:
        """How often texts were kept in it, over all runs, each time some of them."""
        return int(self.fact("changes") or 0)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading ----------------------------------------------------------------------------------------------------

    def known(self, items: Sequence[str]) -> dict[str, Known]:
        """What was read and said of some items; those of which nothing was are left out."""
        found: dict[bytes, Known] = {}
        for key, digest, size, changed in self._some("SELECT item, digest, size, changed FROM images", "item", items):
            found[key] = Known(SeenImage(digest, None if size is None else Stamp(size, changed)), {})
        query = "SELECT item, label, image, adapter, how, text, finish, tokens, likelihood FROM texts"
        for key, label, *rest in self._some(query, "item", items):
            found.setdefault(key, Known(None, {})).said[label] = Said(*rest)
        return {os.fsdecode(key): known for key, known in found.items()}

    def files(self, paths: Sequence[str]) -> dict[str, Written]:
        """Some files as they were written last; paths are below the output."""
        rows = self._some("SELECT path, labels, digest, before, size, changed FROM files", "path", paths)
        return {
            os.fsdecode(path): Written(labels, digest, before, None if size is None else Stamp(size, changed))
            for path, labels, digest, before, size, changed in rows
        }

    def file(self, path: str) -> Written | None:
        """A file as it was written last; ``path`` is below the output."""
        return self.files([path]).get(path)

    def failures(self) -> dict[str, tuple[str, str]]:
        """Kind and reason of what went wrong the last time, by item."""
        return {os.fsdecode(item): (kind, why) for item, kind, why in self._all("SELECT * FROM failed")}

    def fact(self, name: str) -> Any:
        """What was noted under a name; None for nothing."""
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return row and json.loads(row[0])

    def _some(self, query: str, column: str, keys: Sequence[str]) -> list[Any]:
        rows, encoded = [], list(map(os.fsencode, keys))
        for start in range(0, len(encoded), AT_ONCE):
            some = encoded[start : start + AT_ONCE]
            rows += self._all(f"{query} WHERE {column} IN ({', '.join('?' * len(some))})", *some)
        return rows

    def _one(self, query: str, key: bytes | str) -> Any:
        return next(iter(self._all(query, key)), None)

    def _all(self, query: str, *values: bytes | str) -> list[Any]:
        try:
            with self._turn:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    # --- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Everything that is noted in a block is kept together, or nothing of it.

        Raises:
            PathError: It cannot be written; the disk may be full.
        """
        with self._turn, self._guarded(), self._changing():
            self._changed, self._noted, self._succeeded = False, {}, []
            yield
            if self._changed:
                self.note_facts({"changes": self.changes + 1})
            self._write_noted()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back itself, as it does on a full disk
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def note_image(self, item: str, seen: SeenImage) -> None:
        """Remember an image as it is now."""
        size, changed = (seen.stamp.size, seen.stamp.changed_ns) if seen.stamp else (None, None)
        self._put("images", os.fsencode(item), size, changed, seen.digest)

    def note_texts(self, item: str, said: Mapping[str, Said]) -> None:
        """Keep what was said of an item by label; it has not failed then."""
        key = os.fsencode(item)
        for label, one in said.items():
            self._put("texts", key, label, *astuple(one))
        self._succeeded.append((key,))
        self._changed = self._changed or bool(said)

    def note_file(self, path: str, written: Written) -> None:
        """Keep what a file holds, or is going to hold."""
        size, changed = (written.stamp.size, written.stamp.changed_ns) if written.stamp else (None, None)
        self._put("files", os.fsencode(path), written.labels, written.digest, written.before, size, changed)

    def note_failed(self, item: str, error: LoraxError) -> None:
        """Keep why there is no text."""
        self._put("failed", os.fsencode(item), type(error).__name__, printable(one_line(error)))

    def note_facts(self, facts: Mapping[str, Any]) -> None:
        """Keep values by name."""
        for name, value in facts.items():
            self._put("facts", name, json.dumps(value))

    def _put(self, table: str, *values: object) -> None:
        self._noted.setdefault(table, []).append(values)

    def _write_noted(self) -> None:
        self._db.executemany("DELETE FROM failed WHERE item = ?", self._succeeded)
        for table, rows in self._noted.items():
            self._db.executemany(f"REPLACE INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Troubles of the file are those of a path; ``naming`` does not know SQLite's."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _trouble(self, error: sqlite3.Error) -> PathError:
        hint = "What was said before is kept; the same command goes on when it can be written again."
        return PathError(str(self.path), str(error), hint)
