"""Text files beside images, changed where they lie, with a file that takes it back. No torch."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorax_vlm.curation.edit import changer
from lorax_vlm.data.readers.folder_tables import tables_in
from lorax_vlm.data.readers.sidecars import text_files
from lorax_vlm.data.readers.values import is_blank
from lorax_vlm.errors import DataError, PathError, UsageError
from lorax_vlm.foreign import decode_text, parse_json
from lorax_vlm.paths import OWN_FOLDER, naming, rewrite, written_whole

_HINT = "It is written by lorax-vlm data edit --in-place, and lies in the folder .lorax-vlm of the texts."


@dataclass(frozen=True)
class EditedFiles:
    """Text files that were changed, or would be."""

    changes: tuple[tuple[str, str, str], ...]
    """Name below the folder, the text before, the text after."""
    emptied: tuple[str, ...]
    """Files of which nothing would be left; they are as they were."""
    left: tuple[str, ...]
    """Files that are no text, or that somebody changed meanwhile; they are as they are."""
    undo: Path | None
    """What ``undo_edit`` takes; None where nothing was written."""


@dataclass(frozen=True)
class Undone:
    """What came of taking an edit back."""

    restored: tuple[str, ...]
    left: tuple[str, ...]
    """Files that somebody has changed since, or removed; they are as they are."""


def edit_text_files(folder: Path, find: str, put: str, *, regex: bool = False, dry_run: bool = False) -> EditedFiles:
    """Replace something in the text files that are captions of a folder's images.

    White space around a caption stays as it is, and is not looked at. What was there is written down before anything is
    changed.

    Args:
        folder: The images with their texts, and those of its sub folders.
        find: As for ``replace_in_texts``.
        put: As there.
        regex: As there.
        dry_run: Say what would change.

    Raises:
        UsageError: ``find`` or ``put`` cannot be, or the captions are not in text files.
        PathError: There is no such folder, or a file cannot be read or written; those that were not reached are as they
            were, and ``undo_edit`` takes back the others.
    """
    change = changer(find, put, regex=regex)
    if not folder.is_dir():
        raise PathError(str(folder), "it is no folder" if folder.exists() else "no such folder")
    if tables := tables_in(folder):
        raise UsageError(f"The captions of {folder} are in {tables[0].path.name}: write a copy, --out FOLDER.")
    files = text_files(folder)
    if not files:
        raise UsageError(f"No image in {folder} has a text beside it; of a table write a copy, --out FOLDER.")
    changes, emptied, unread = list[tuple[str, str, str]](), list[str](), list[str]()
    content: dict[Path, tuple[bytes, bytes]] = {}
    for path in files:
        name = path.relative_to(folder).as_posix()
        with naming(path):
            before = path.read_bytes()
        try:
            text = decode_text(before)
        except ValueError:  # as it is not read either
            unread.append(name)
            continue
        caption = text.strip()
        new = change(caption)
        if new == caption:
            continue
        if is_blank(new):
            emptied.append(name)
            continue
        changes.append((name, caption, new))
        head, _, tail = text.partition(caption)
        content[path] = (before, f"{head}{new}{tail}".encode())
    undo, meanwhile = _write(folder, content) if content and not dry_run else (None, [])
    changed = tuple(one for one in changes if one[0] not in meanwhile)
    return EditedFiles(changed, tuple(emptied), tuple([*unread, *meanwhile]), undo)


def _write(folder: Path, content: dict[Path, tuple[bytes, bytes]]) -> tuple[Path, list[str]]:
    """Where it is written down what was there, and the files that somebody changed meanwhile."""
    undo = folder / OWN_FOLDER / f"undo-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.jsonl"
    with naming(undo):
        undo.parent.mkdir(exist_ok=True)
        with written_whole(undo) as file:
            for path, (before, after) in content.items():
                record = {
                    "file": path.relative_to(folder).as_posix(),
                    "before": base64.b64encode(before).decode(),
                    "after": hashlib.sha256(after).hexdigest(),
                }
                file.write(json.dumps(record).encode() + b"\n")
    meanwhile = []
    for path, (before, after) in content.items():
        with naming(path, f"What was changed until then is taken back by: lorax-vlm data undo {undo}"):
            if path.read_bytes() != before:
                meanwhile.append(path.relative_to(folder).as_posix())
            else:
                rewrite(path, after)
    return undo, meanwhile


def undo_edit(undo: Path) -> Undone:
    """Give the text files of an edit back what they held; what was changed since stays, and the list of it, too.

    Raises:
        DataError: It is no list of an edit; nothing was changed.
        PathError: A file cannot be read or written; the same again goes on.
    """
    with naming(undo):
        records = list(_records(undo))
    folder, restored, left = undo.parent.parent, [], []
    for name, before, after in records:
        path = folder / name
        with naming(path):
            now = path.read_bytes() if path.is_file() else None
            if now == before:
                restored.append(name)
            elif now is not None and hashlib.sha256(now).hexdigest() == after:
                rewrite(path, before)
                restored.append(name)
            else:
                left.append(name)
    if not left:
        undo.unlink()
    return Undone(tuple(restored), tuple(left))


def _records(undo: Path) -> Iterator[tuple[str, bytes, str]]:
    for number, line in enumerate(undo.read_bytes().splitlines(), start=1):
        try:
            record = parse_json(line)
            name, after = str(record["file"]), str(record["after"])
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} lies elsewhere")
            yield name, base64.b64decode(record["before"], validate=True), after
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(str(undo), [f"line {number}: {error}"], _HINT) from error
