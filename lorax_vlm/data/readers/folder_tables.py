"""Which files of a folder are its tables, and for which part each is. One that would be left unread is said.

A table is called ``metadata`` (one above all, or one in each folder of a part), or is called after its part and lies in
the folder or in its ``data/``. No torch.
"""

from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.data.readers.listing import images_below, is_image_name, is_left_behind, walk
from lorax_vlm.data.readers.sidecars import CAPTION_SUFFIXES
from lorax_vlm.data.readers.tables import TABLE_SUFFIXES
from lorax_vlm.data.splitting import part_called, part_in_file_name
from lorax_vlm.errors import DataError

METADATA = "metadata"
_WAY_OUT = "Keep one, or name the file: --data FOLDER/FILE."
_DOCUMENTS = (".json",)
_SHOWN = 5


@dataclass(frozen=True)
class FolderTable:
    """A table of rows: ``part`` is what its name or folder says, None where its rows or their images do."""

    path: Path
    part: str | None = None


def tables_in(root: Path) -> list[FolderTable]:
    """The tables of a folder, each with the part it is for; none when no file is called like one.

    Raises:
        DataError: Two say something about the same images, or one that seems to belong to the data would not be read.
    """
    found = _metadata(root) or _named_after_parts(root)
    if found:
        _require_all_read(root, found)
    return found


def left_unread(root: Path, tables: list[FolderTable]) -> list[str]:
    """What else in a folder may be about its images, in words for the one whose data it is."""
    read = {table.path for table in tables}
    others = [path for path in _files(root) if path not in read]
    lines = [f"not read, for it is called neither {METADATA} nor after a part: {path.name}" for path in others[:_SHOWN]]
    if len(others) > _SHOWN:
        lines.append(f"not read: {len(others) - _SHOWN} more tables")
    if tables and (beside := _text_beside(root)):
        lines.append(f"texts beside images are not read where there is a table: {beside.relative_to(root).as_posix()}")
    return lines


def what_is_there(root: Path) -> str:
    """What a folder without tables and texts has instead, for the message."""
    files = [path.name for path in (*_files(root), *sorted(root.glob("*.json")))]
    if files:
        return f"; there is {', '.join(files[:3])}: name the file, --data {root / files[0]}"
    for folder in _folders(root):
        if _called_metadata(folder):
            return f"; {folder.name} has one: --data {folder}"
    images = images_below(root)
    return f"; there are {len(images)} images that nothing is said about" if images else "; there are no images"


def _metadata(root: Path) -> list[FolderTable]:
    """The one table above all, or the tables of the parts."""
    above = _called_metadata(root)
    below = {folder: _called_metadata(folder) for folder in _folders(root)}
    if above and any(below.values()):
        names = _names(root, [*above, *(path for paths in below.values() for path in paths)])
        raise DataError(str(root), [f"tables above the parts and in them: {names}"], "Keep one or the others.")
    if above:
        return [FolderTable(path) for path in above]
    parts = {folder: part for folder in below if (part := part_called(folder.name)) is not None}
    found = [FolderTable(path, part) for folder, part in parts.items() for path in below[folder]]
    if found:
        _require_all_parts(root, below)
    return found


def _require_all_parts(root: Path, below: dict[Path, list[Path]]) -> None:
    problems = []
    for folder, tables in below.items():
        part = part_called(folder.name)
        if tables and part is None:
            problems.append(f"{folder.name}/{tables[0].name} would not be read: {folder.name} is called after no part")
        elif not tables and part is not None and (_files(folder) or images_below(folder)):
            problems.append(f"{folder.name} has no {METADATA} file, as the other parts have")
    if problems:
        parts = "train, validation, test"
        raise DataError(str(root), problems, f"Parts are folders called {parts}, each with a {METADATA} file.")


def _named_after_parts(root: Path) -> list[FolderTable]:
    found = [FolderTable(path, part_in_file_name(path.name)) for path in (*_files(root), *_files(root / "data"))]
    named = [table for table in found if table.part is not None]
    _require_one_each(root, named)
    return named


def _require_one_each(root: Path, tables: list[FolderTable]) -> None:
    """A part has one table or several of one format, in one folder; the same rows in two formats would count twice."""
    first: dict[str | None, Path] = {}
    for table in tables:
        other = first.setdefault(table.part, table.path)
        if (other.parent, other.suffix.lower()) != (table.path.parent, table.path.suffix.lower()):
            raise DataError(str(root), [f"{_names(root, [other, table.path], ' and ')}: which is meant?"], _WAY_OUT)


def _require_all_read(root: Path, tables: list[FolderTable]) -> None:
    """A file called after a part, or in the folder of one, is meant to be read."""
    read = {table.path for table in tables}
    beside = [path for folder in (root, root / "data") for path in _files(folder, _DOCUMENTS)]
    parts = [folder for folder in _folders(root) if part_called(folder.name) is not None]
    meant = [path for path in beside if part_in_file_name(path.name) is not None]
    meant += [path for folder in parts for path in _files(folder, _DOCUMENTS)]
    lost = [path for path in meant if path not in read]
    if lost:
        names, those = _names(root, lost[:_SHOWN]), _names(root, sorted(read)[:_SHOWN])
        raise DataError(str(root), [f"{names}: would not be read beside {those}; which is meant?"], _WAY_OUT)


def _called_metadata(folder: Path) -> list[Path]:
    """The one table of this name.

    Raises:
        DataError: There are two.
    """
    found = [path for path in _files(folder) if path.stem.lower() == METADATA]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(str(folder), [f"{names}: which is meant?"], _WAY_OUT)
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if not is_left_behind(path.name) and path.is_dir())


def _files(folder: Path, besides: tuple[str, ...] = ()) -> list[Path]:
    """The tables of a folder, and its files of other suffixes."""
    if not folder.is_dir():
        return []
    suffixes = (*TABLE_SUFFIXES, *besides)
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not is_left_behind(path.name) and path.is_file()
    )


def _text_beside(root: Path) -> Path | None:
    """The first text that lies beside an image of its name."""
    everything = list(walk(root))
    images = {(path.parent, path.stem) for path in everything if is_image_name(path.name)}
    texts = (path for path in everything if path.suffix.lower() in CAPTION_SUFFIXES)
    return next((path for path in texts if (path.parent, path.stem) in images), None)


def _names(root: Path, paths: list[Path], comma: str = ", ") -> str:
    return comma.join(path.relative_to(root).as_posix() for path in paths)
