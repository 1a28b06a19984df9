"""Tables that hold the images themselves (parquet, data sets of the hub), read with ``datasets``.

Rows stay on disk; an image is read from its row when it is needed.

No torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorax_vlm.data.image_facts import RowImage, Stored
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.listing import walk
from lorax_vlm.data.readers.rows import find_image
from lorax_vlm.errors import DataError, MalformedRow
from lorax_vlm.foreign import printable, quoted

_SHORT_FLOATS = {"float16": np.float16, "float32": np.float32}


def load_splits(
    shown: str, name: str, config: str | None = None, *, streaming: bool = False, files: Sequence[Path] = ()
) -> dict[str, Any]:
    """The splits of a data set, with images as bytes or paths so that our own reading of images applies.

    Args:
        shown: What the person typed.
        name: As for ``datasets.load_dataset``.
        config: One of the configurations that a data set may have.
        streaming: Read rows as they are needed.
        files: Files of ``name``, when that is a format.

    Raises:
        DataError: It cannot be loaded.
    """
    from datasets import load_dataset

    try:
        given: dict[str, Any] = {"cache_dir": _cache_of(files or [Path(name).expanduser()])}
    except OSError as error:
        raise DataError(shown, [f"it cannot be read: {error.strerror or type(error).__name__}"]) from error
    if files:
        given["data_files"] = {"train": [str(path.absolute()) for path in files]}
    try:
        splits = dict(load_dataset(name, config, streaming=streaming, **given))
        return {split: _undecoded(rows) for split, rows in splits.items()}
    except MemoryError:
        raise
    except Exception as error:  # the library's own, pyarrow's, those of formats and of the network
        if config is None and "Config name is missing" in str(error):
            configs = _configurations(name)
            hint = f"Name one behind a colon: hub:{name}:{configs[0] if configs else 'CONFIGURATION'}."
            raise DataError(shown, [f"it has several configurations: {', '.join(configs)}"], hint) from error
        raise DataError(shown, [f"it cannot be loaded: {first_line(error)}"]) from error


def _configurations(name: str) -> list[str]:
    from datasets import get_dataset_config_names

    return list(map(printable, get_dataset_config_names(name)))


def _cache_of(paths: Sequence[Path]) -> str | None:
    """A cache for local files as they are now; None for what is not local.

    The library takes a file for unchanged when its time is, and times are kept by ``rsync -t``, ``cp -p`` and ``tar``.
    """
    from datasets import config

    files = [file for path in paths for file in (walk(path) if path.is_dir() else [path]) if file.exists()]
    if not files:
        return None
    states = [
        (str(file.absolute()), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
        for file, state in ((file, file.stat()) for file in files)
    ]
    return str(Path(config.HF_DATASETS_CACHE) / f"lorax-{hashlib.sha256(repr(states).encode()).hexdigest()[:16]}")


def first_line(error: BaseException) -> str:
    """What an error of a library says, as one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _undecoded(rows: Any) -> Any:
    from datasets import Image

    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
        elif getattr(feature, "decode", False):  # sounds and videos
            rows = rows.remove_columns(column)
    return rows


def read_parquet(path: Path) -> tuple[Any, Iterator[tuple[int, Mapping[str, Any]]]]:
    """The rows of a file, to be read by number, and one after the other.

    Raises:
        DataError: It is no parquet file.
    """
    rows = load_splits(str(path), "parquet", files=[path])["train"]
    return rows, iterate(str(path), rows)


def iterate(shown: str, rows: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers.

    Raises:
        DataError: The library cannot read on.
    """
    number, meant = 0, _meanings(rows.features or {})
    given = iter(rows)
    while True:
        try:
            row = next(given)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:  # as when it is loaded
            raise DataError(shown, [f"[{number}]: it cannot be read on: {first_line(error)}"]) from error
        yield number, {**row, **{column: mean(row[column]) for column, mean in meant.items() if column in row}}
        number += 1


Meaning = Callable[[Any], Any]


def _meanings(features: Mapping[str, Any]) -> dict[str, Meaning]:
    """What has to be done with the cells of a column, for the columns where something has."""
    return {column: mean for column, feature in features.items() if (mean := _meaning(feature)) is not None}


def _meaning(feature: Any) -> Meaning | None:
    """How the table means a cell of this kind, where ``datasets`` hands out something else.

    The name of a class, not its number; the decimal that a short float was written as, not the nearest double.
    """
    from datasets import ClassLabel, LargeList, List, Value

    if isinstance(feature, ClassLabel):
        names = list(feature.names or [])
        return lambda number: names[number] if isinstance(number, int) and 0 <= number < len(names) else None
    if isinstance(feature, Value) and feature.dtype in _SHORT_FLOATS:
        short = _SHORT_FLOATS[feature.dtype]
        return lambda value: None if value is None else float(str(short(value)))
    if isinstance(feature, List | LargeList) and (inner := _meaning(feature.feature)) is not None:
        return lambda values: None if values is None else [inner(value) for value in values]
    if isinstance(feature, Mapping) and (fields := _meanings(feature)):
        return lambda cell: cell and {**cell, **{name: mean(cell[name]) for name, mean in fields.items()}}
    return None


def embedded_image(
    row: Mapping[str, Any], columns: Columns, files: Sequence[ImageFiles], rows: Any = None, index: int = 0
) -> Stored:
    """The image of a row: its bytes, or a file inside of the folder that the data set is in.

    Args:
        row: Read from ``rows``.
        columns: Which column is the image's.
        files: Where paths may lead.
        rows: The table, so that bytes need not be kept. None: keep them.
        index: Number of the row.

    Raises:
        MalformedRow: It is neither.
    """
    column = columns.image_column(row)
    value = row.get(column)
    if isinstance(value, Mapping):
        data = value.get("bytes")
        if not data:
            return _in_folders(value.get("path"), column, files)
    else:
        data = value
    if isinstance(data, bytes) and data:
        return data if rows is None else RowImage(rows, index, column)
    if isinstance(value, str):
        return _in_folders(value, column, files)
    if value is None and columns.get(row, "image_id") is not None and files:
        return find_image(row, columns, files[0])
    raise MalformedRow(
        f"no image in column {column!r}: {quoted(value)}", field=column, value=quoted(value), wanted="an image"
    )


def _in_folders(name: Any, column: str, files: Sequence[ImageFiles]) -> Path:
    if not files:
        raise MalformedRow(
            f"{column} is text, {quoted(name)}; expected an image in the row", field=column, value=quoted(name)
        )
    if name is None:
        raise MalformedRow(f"no image in column {column!r}", field=column, value="None", wanted="an image")
    for place in files[:-1]:
        try:
            return place.named(name, column)
        except MalformedRow:
            continue
    return files[-1].named(name, column)
