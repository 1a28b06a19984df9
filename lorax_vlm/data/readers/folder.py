"""A folder of images with captions or questions.

    photos/metadata.jsonl          {"file_name": "cat.jpg", "caption": "a cat on a mat"}
                                   {"file_name": "cat.jpg", "question": "What animal is it?", "answer": "cat"}
    photos/cat.jpg

``metadata.csv`` and ``metadata.parquet`` with the same columns do as well (the Hugging Face ImageFolder convention),
and so do texts beside the images (``cat.txt``, ``cat.caption``), and tables that are called after the parts
(``train.csv``, ``validation-00000.parquet``). Parts are folders, ``train/``, ``validation/`` and ``test/``, with one
table each or one above all. The text column is ``caption`` or ``text``; a list of texts gives one example each. A row
with a ``question``
has an ``answer``, or ``answers`` with what each annotator said, and perhaps a ``type``.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.gathering import Gathering, ReadKeywords, read_options
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.listing import images_below, is_left_behind
from lorax_vlm.data.readers.rows import Spot, find_image
from lorax_vlm.data.readers.sidecars import captioned_images
from lorax_vlm.data.readers.table_files import part_by_folder, take_table
from lorax_vlm.data.readers.tables import TABLE_SUFFIXES
from lorax_vlm.data.splitting import part_called, part_in_file_name
from lorax_vlm.errors import DataError, MalformedRow

METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
ROW_HINT = (
    'A row is an object such as {"file_name": "cat.jpg", "caption": "a cat on a mat"} or '
    '{"file_name": "cat.jpg", "question": "What animal is it?", "answer": "cat"}.'
)


@dataclass(frozen=True)
class _Table:
    path: Path
    part: str | None = None


def read_image_folder(folder: str | Path, **options: Unpack[ReadKeywords]) -> DataSplits:
    """Read a folder of images into the examples of its parts; any of them may be empty.

    Args:
        folder: See the top of this file.
        options: See ``ReadKeywords``.

    Raises:
        UsageError: ``held_out`` is no share.
        DataError: There is no such data, or a row is malformed; every row is listed.
    """
    root = Path(folder).expanduser()
    asked = read_options(**options)
    if not root.is_dir():
        raise DataError(str(root), ["it is no folder" if root.exists() else "no such folder"])
    gathering = Gathering(str(root), root.resolve().name, asked, ROW_HINT)
    tables = tables_in(root)
    files = [_read_table(gathering, root, table) for table in tables]
    if not tables:
        files = [_read_texts(gathering, root)]
    notes = files[0].notes.copy()
    for others in files[1:]:
        notes.update(others.notes)
    return gathering.splits(notes)


def _read_table(gathering: Gathering, root: Path, table: _Table) -> ImageFiles:
    files, part = ImageFiles(table.path.parent), table.part
    part_of = part_by_folder(root) if part is None else lambda _: part
    name = f"{gathering.label}/{table.path.relative_to(root).as_posix()}"
    take_table(gathering, table.path, name, files, part_of)
    return files


def _read_texts(gathering: Gathering, root: Path) -> ImageFiles:
    found = captioned_images(root)
    if not found:
        raise DataError(
            str(root), [f"neither {', '.join(METADATA_NAMES)} nor texts beside images{_near(root)}"], ROW_HINT
        )
    files = ImageFiles(root)
    image_of = partial(find_image, columns=Columns(), files=files)
    part_of = part_by_folder(root)
    for path, row in found:
        spot = Spot(str(path), f"{gathering.label}/{path.relative_to(root).as_posix()}")
        if isinstance(row, MalformedRow):
            gathering.refuse(spot, row)
        else:
            gathering.take(spot, row, image_of, part_of)
    return files


def tables_in(root: Path) -> list["_Table"]:
    """The tables of a folder, each with the part it is for.

    Raises:
        DataError: Two say something about the same images.
    """
    return _metadata(root) or _named_after_parts(root)


def _metadata(root: Path) -> list[_Table]:
    """The one table above all, or the tables of the parts.

    Raises:
        DataError: Both, or two for one folder.
    """
    above = _tables_of(root)
    parts = [
        _Table(path, part)
        for folder in sorted(root.iterdir())
        if (part := part_called(folder.name)) is not None and folder.is_dir()
        for path in _tables_of(folder)
    ]
    if above and parts:
        names = ", ".join(path.relative_to(root).as_posix() for path in (*above, *(table.path for table in parts)))
        raise DataError(str(root), [f"tables above the parts and in them: {names}"], "Keep one or the others.")
    return [_Table(path) for path in above] or parts


def _tables_of(folder: Path) -> list[Path]:
    found = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DataError(str(folder), [f"{names}: which is meant?"], "Keep one, or name the file: --data FOLDER/FILE.")
    return found


def _named_after_parts(root: Path) -> list[_Table]:
    for folder in (root, root / "data"):
        if folder.is_dir():
            found = [_Table(path, part_in_file_name(path.name)) for path in _table_files(folder)]
            named = [table for table in found if table.part is not None]
            if named:
                return named
    return []


def _table_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in TABLE_SUFFIXES and not is_left_behind(path.name) and path.is_file()
    )


def _near(root: Path) -> str:
    """What there is instead, for the message."""
    files = [path.name for path in (*_table_files(root), *sorted(root.glob("*.json")))]
    if files:
        return f"; there is {', '.join(files[:3])}: name the file, --data {root / files[0]}"
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if _tables_of(folder):
            return f"; {folder.name} has one: --data {folder}"
    images = images_below(root)
    return f"; there are {len(images)} images that nothing is said about" if images else "; there are no images"
