"""One door to all sources of examples: what is asked for is recognised by what it is."""

import difflib
from pathlib import Path
from typing import Unpack, cast

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.readers.documents import NO_IMAGES_HINT, read_document
from lorax_vlm.data.readers.folder import ROW_HINT, read_image_folder
from lorax_vlm.data.readers.gathering import Gathering, ReadKeywords, ReadOptions, SourceKeywords, read_options
from lorax_vlm.data.readers.hub import HUB_PREFIX, read_hub_dataset
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.table_files import part_by_folder, take_table
from lorax_vlm.data.readers.tables import TABLE_SUFFIXES
from lorax_vlm.errors import DataError, PathError, UsageError
from lorax_vlm.foreign import quoted, text_problem
from lorax_vlm.types import require_flag

_KINDS = "a folder, a .json, .jsonl, .csv or .parquet file, or hub:owner/name for a data set of the hub"


def read_data(source: str | Path, **options: Unpack[SourceKeywords]) -> DataSplits:
    """Read examples to train on: there are some to train on and some to validate on, all of one kind.

    Args:
        source: A folder (see ``readers.folder``); a table of rows as ``.jsonl``, ``.csv`` or ``.parquet``; a JSON file
            (see ``readers.documents``); or ``hub:owner/name`` for a data set of the hub.
        options: Such as ``columns``, ``held_out`` and ``skip_bad_rows``; see ``readers.gathering.SourceKeywords``.

    Raises:
        UsageError: An option is unknown, or ``held_out`` is no share.
        DataError: The source is none of these, or has malformed rows; every row is listed. Or a side would be empty.
        PathError: A file or folder cannot be read.
    """
    return read_parts(source, **options).require_trainable()


def read_parts(source: str | Path, **options: Unpack[SourceKeywords]) -> DataSplits:
    """Read examples to measure with: as ``read_data``, but any part may be empty, and one row is enough.

    Raises:
        UsageError: As ``read_data``, or ``source`` is no path.
        DataError: As ``read_data``.
        PathError: A file or folder cannot be read.
    """
    if not isinstance(source, str | Path):
        raise UsageError(f"data must be a path, {HUB_PREFIX}owner/name or DataSplits, got {quoted(source)}.")
    images, annotations = (_path(name, options.pop(name, None)) for name in ("images", "annotations"))  # type: ignore[misc]
    streaming = options.pop("streaming", False)
    require_flag("streaming", streaming)
    shown = str(source)
    if shown.startswith(HUB_PREFIX) and (images is not None or annotations is not None):
        raise UsageError(f"--images and --annotations belong to a file of rows; {shown} is a data set of the hub.")
    shared = cast(ReadKeywords, options)
    if str(source).startswith(HUB_PREFIX):
        return read_hub_dataset(str(source).removeprefix(HUB_PREFIX), streaming=streaming, **shared)
    if streaming:
        raise UsageError(f"--streaming reads data sets of the hub ({HUB_PREFIX}owner/name), not files.")
    try:
        return _read_path(_require_path(source), read_options(**shared), shared, images, annotations)
    except PathError:
        raise
    except OSError as error:
        raise PathError.of(error.filename or source, error) from error


def _path(name: str, path: str | Path | None) -> Path | None:
    if path is not None and not isinstance(path, str | Path):
        raise UsageError(f"{name} must be a path, got {quoted(path)}.")
    return None if path is None else Path(path).expanduser()


def _read_path(
    path: Path, options: ReadOptions, given: ReadKeywords, images: Path | None, annotations: Path | None
) -> DataSplits:
    suffix = path.suffix.lower()
    if path.is_dir():
        if images is not None or annotations is not None:
            raise UsageError(f"--images and --annotations belong to a file of rows; {path} is a folder.")
        return read_image_folder(path, **given)
    if suffix == ".json":
        return read_document(path, options, images=images, annotations=annotations)
    if suffix in TABLE_SUFFIXES:
        if annotations is not None:
            raise UsageError(f"--annotations belongs to the questions of VQAv2, a .json file; {path} is a table.")
        return _read_table(path, options, images)
    raise DataError(str(path), [f"it is a file of another kind; what is read: {_KINDS}"])


def _read_table(path: Path, options: ReadOptions, images: Path | None) -> DataSplits:
    if images is not None and not images.is_dir():
        raise DataError(str(images), ["there is no such image folder"], NO_IMAGES_HINT)
    folder = path.parent if images is None else images
    files = ImageFiles(folder, sub_folders=images is not None)
    hint = (
        ROW_HINT if images is not None else f"{ROW_HINT} Where images are not beside it, give their folder: --images."
    )
    gathering = Gathering(str(path), path.name, options, hint, part_by_folder(folder) if images is not None else None)
    folder_of = part_by_folder(folder) if images is None else None
    take_table(gathering, path, path.name, files, folder_of=folder_of)
    return gathering.splits(files.notes)


def _require_path(source: str | Path) -> Path:
    """The path of data that are there.

    Raises:
        DataError: There is nothing; what is near is named.
    """
    wrong = text_problem(str(source)) if str(source).strip() else "no letters"
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # a home folder of nobody
        raise DataError(str(source), [str(error)]) from None
    if wrong is None and path.exists():
        return path
    raise DataError(str(source), [f"the path has {wrong}" if wrong else f"no such {_kind(path)}{_near(path)}"])


def _kind(path: Path) -> str:
    return "file" if path.suffix.lower() in (*TABLE_SUFFIXES, ".json") else "folder"


def _near(path: Path) -> str:
    """What may have been meant, for the message."""
    if path.parent.is_dir():
        names = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
        if names:
            return f"; did you mean {path.parent / names[0]}?"
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.exists():
        return f" here; a data set of the hub is {HUB_PREFIX}{path.as_posix()}"
    return ""
