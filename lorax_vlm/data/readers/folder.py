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

from functools import partial
from pathlib import Path
from typing import Unpack

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.folder_tables import FolderTable, left_unread, tables_in, what_is_there
from lorax_vlm.data.readers.gathering import Gathering, ReadKeywords, read_options
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import Spot, find_image, no_part
from lorax_vlm.data.readers.sidecars import captioned_images
from lorax_vlm.data.readers.table_files import part_by_folder, take_table
from lorax_vlm.errors import DataError, MalformedRow

NO_TABLE = "metadata.jsonl, metadata.csv, metadata.parquet"
ROW_HINT = (
    'A row is an object such as {"file_name": "cat.jpg", "caption": "a cat on a mat"} or '
    '{"file_name": "cat.jpg", "question": "What animal is it?", "answer": "cat"}.'
)


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
    return gathering.splits(notes, left_unread(root, tables))


def _read_table(gathering: Gathering, root: Path, table: FolderTable) -> ImageFiles:
    files = ImageFiles(table.path.parent)
    folder_of = part_by_folder(root) if table.part is None else no_part
    name = f"{gathering.label}/{table.path.relative_to(root).as_posix()}"
    take_table(gathering, table.path, name, files, part=table.part, folder_of=folder_of)
    return files


def _read_texts(gathering: Gathering, root: Path) -> ImageFiles:
    found = captioned_images(root)
    if not found:
        raise DataError(str(root), [f"neither {NO_TABLE} nor texts beside images{what_is_there(root)}"], ROW_HINT)
    files = ImageFiles(root)
    image_of = partial(find_image, columns=Columns(), files=files)
    folder_of = part_by_folder(root)
    for path, row in found:
        spot = Spot(str(path), f"{gathering.label}/{path.relative_to(root).as_posix()}")
        if isinstance(row, MalformedRow):
            gathering.refuse(spot, row)
        else:
            gathering.take(spot, row, image_of, folder_of=folder_of)
    return files
