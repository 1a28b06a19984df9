"""The rows of one table file, whichever format it has, given to a gathering. No torch."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lorax_vlm.data.image_facts import Stored
from lorax_vlm.data.readers.columns import Columns
from lorax_vlm.data.readers.embedded import embedded_image, read_parquet
from lorax_vlm.data.readers.gathering import Gathering
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import ImageOf, PartOf, Spot, find_image
from lorax_vlm.data.readers.tables import read_lines
from lorax_vlm.data.splitting import part_called
from lorax_vlm.errors import MalformedRow


def take_table(
    gathering: Gathering,
    path: Path,
    name: str,
    files: ImageFiles,
    *,
    part: str | None = None,
    folder_of: PartOf | None = None,
) -> None:
    """Read the rows of a file.

    Args:
        gathering: They are given to it.
        path: JSON lines, CSV or parquet.
        name: What records call the file.
        files: Where its images are.
        part: The part that the file is for.
        folder_of: The part that the folder of a row's image is called after. None: the gathering's.

    Raises:
        DataError: It cannot be read at all.
    """
    for place, row, image_of in numbered_rows(path, gathering.options.columns, files):
        spot = Spot(f"{path}{place}", f"{name}{place}")
        if isinstance(row, MalformedRow):
            gathering.refuse(spot, row)
        else:
            gathering.take(spot, row, image_of, part=part, folder_of=folder_of)


def numbered_rows(path: Path, columns: Columns, files: ImageFiles) -> Iterator[tuple[str, Any, ImageOf]]:
    """The rows of a file, or what is wrong with one, each with its place in it and what finds its image.

    A place is ``:LINE``, or ``[INDEX]`` of a parquet file.

    Args:
        path: JSON lines, CSV or parquet.
        columns: Which of them say what.
        files: Where its images are.

    Raises:
        DataError: It cannot be read at all.
    """
    if path.suffix.lower() == ".parquet":
        rows, numbered = read_parquet(path)
        for index, embedded in numbered:
            image_of = partial(embedded_image, columns=columns, files=[files], rows=rows, index=index)
            yield f"[{index}]", embedded, image_of
        return
    find = partial(find_image, columns=columns, files=files)
    for line, row in read_lines(path):
        yield f":{line}", row, find


def part_by_folder(root: Path) -> PartOf:
    """Rows belong to the part that a folder below ``root`` is called after, the outermost of such a name."""

    def part_of(image: Stored) -> str | None:
        if not isinstance(image, Path):
            return None
        parts = map(part_called, image.relative_to(root).parts[:-1])
        return next((part for part in parts if part is not None), None)

    return part_of
