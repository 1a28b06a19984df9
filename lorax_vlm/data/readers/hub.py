"""Data sets of the Hugging Face hub, or folders that ``datasets`` reads; streamed when they are large. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.readers.columns import COLUMNS_HINT, Columns
from lorax_vlm.data.readers.embedded import embedded_image, iterate, load_splits
from lorax_vlm.data.readers.gathering import Gathering, ReadKeywords, read_options
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import ImageOf, Spot
from lorax_vlm.data.readers.streams import StreamSource, stream_splits
from lorax_vlm.data.splitting import part_called
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.foreign import quoted

HUB_PREFIX = "hub:"
VALIDATION_ROWS = 200
"""Most rows that a stream is validated on."""


def read_hub_dataset(
    name: str,
    *,
    streaming: bool = False,
    validation_count: int = VALIDATION_ROWS,
    shuffle_buffer: int = 1000,
    **options: Unpack[ReadKeywords],
) -> DataSplits:
    """Read a data set by hub id or by folder into the examples of its parts; any of them may be empty.

    Its own splits are the parts. Images are bytes in the rows, or files inside of the folder that the data set is in;
    addresses and other files are never read.

    Args:
        name: An id of the hub or a folder; of a set with several configurations ``NAME:CONFIGURATION``.
        streaming: Read rows while training instead of downloading all first. Which images are held out is the same;
            bad rows that are not among the first ones stop the run when they are met.
        validation_count: Most rows to validate a stream on.
        shuffle_buffer: Rows of a stream to shuffle among.
        options: See ``ReadKeywords``.

    Raises:
        UsageError: ``held_out`` is no share, or groups are asked of a stream.
        DataError: It cannot be loaded, a column is missing, or rows are malformed.
    """
    asked = read_options(**options)
    if streaming and asked.columns.group is not None:
        raise UsageError("--group-by has to see all rows before it divides them: leave out --streaming.")
    place, config = _place_and_configuration(name)
    _require_name(place)
    splits, unread = _known_parts(name, load_splits(name, place, config, streaming=streaming))
    label = _label(place) + (f":{config}" if config else "")
    if streaming:
        source = StreamSource(name, label, asked, tuple(_files(place)), validation_count, shuffle_buffer)
        streamed = stream_splits(source, splits)
        return replace(streamed, notes=(*streamed.notes, *unread))
    gathering, files = Gathering(name, label, asked, COLUMNS_HINT), _files(place)
    for split, rows in splits.items():
        for index, row in iterate(name, rows):
            spot = Spot(f"{name}:{split}[{index}]", f"{label}:{split}[{index}]")
            image_of = partial(embedded_image, columns=asked.columns, files=files, rows=rows, index=index)
            gathering.take(spot, row, image_of, part=part_called(split))
    return gathering.splits(left_unread=unread)


def unlabelled_splits(
    name: str, columns: Columns, split: str | None = None
) -> Iterator[tuple[str, int, Mapping[str, Any], ImageOf]]:
    """Rows as they are, whatever is said in them: split, number, row, and what finds its image.

    Args:
        name: As for ``read_hub_dataset``.
        columns: Which of them say what.
        split: One of its splits. None: all of them, one after the other.

    Raises:
        DataError: It cannot be loaded, or has no such split.
    """
    place, config = _place_and_configuration(name)
    _require_name(place)
    splits, files = load_splits(name, place, config), _files(place)
    if split is not None and split not in splits:
        raise DataError(name, [f"it has no split {quoted(split)}; its splits are {', '.join(map(quoted, splits))}"])
    for known, rows in splits.items():
        for index, row in iterate(name, rows) if split in (None, known) else ():
            yield known, index, row, partial(embedded_image, columns=columns, files=files, rows=rows, index=index)


def _place_and_configuration(name: str) -> tuple[str, str | None]:
    place, _, config = name.rpartition(":")
    return (place, config) if place and config and not Path(name).expanduser().is_dir() else (name, None)


def _require_name(name: str) -> None:
    """Nothing is asked of the network, nor any folder walked, for what names no data set.

    Raises:
        DataError: It is neither a folder nor an id of the hub.
    """
    if (problem := _problem_of_name(name)) is not None:
        hint = f"Name one as {HUB_PREFIX}owner/name, or a folder as {HUB_PREFIX}FOLDER."
        raise DataError(f"{HUB_PREFIX}{quoted(name)[1:-1]}", [problem], hint)


def _problem_of_name(name: str) -> str | None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return "it is the root of the file system" if path.resolve().parent == path.resolve() else None
        if name and path.is_file():
            return f"it is a file; name it without {HUB_PREFIX}"
        validate_repo_id(name)
    except HFValidationError:
        return "there is no such folder, and it is no id of the hub"
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a home that is nobody's
        return f"it is no name: {getattr(error, 'strerror', None) or error}"
    return None


def _known_parts(name: str, splits: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The splits that are parts, a single split may be called anything; and what is said of the others.

    Raises:
        DataError: There are several, and none is called like a part.
    """
    known = {split: rows for split, rows in splits.items() if part_called(split) is not None}
    if known or len(splits) == 1:
        others = [split for split in splits if split not in known] if known else []
        return known or splits, [f"splits that are not read: {', '.join(map(quoted, others))}"] if others else []
    raise DataError(name, [f"its splits are {', '.join(splits) or 'none'}; expected train, validation, test"])


def _label(name: str) -> str:
    """What records call the data set: no path of this machine."""
    path = Path(name).expanduser()
    return HUB_PREFIX + (path.resolve().name if path.exists() else name)


def _files(name: str) -> list[ImageFiles]:
    """The folders that paths in rows may lead to."""
    path = Path(name).expanduser()
    if path.is_dir():
        return [ImageFiles(path, links_out=False)]
    from datasets import config
    from huggingface_hub import constants

    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [
        ImageFiles(folder, links_out=False)
        for folder in (downloaded, Path(config.EXTRACTED_DATASETS_PATH))
        if folder.is_dir()
    ]
