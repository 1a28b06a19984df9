"""The rows of one table file, whichever format it has, given to a gathering."""

from functools import partial
from pathlib import Path

from lorax_vlm.data.image_facts import Stored
from lorax_vlm.data.readers.embedded import embedded_image, read_parquet
from lorax_vlm.data.readers.gathering import Gathering
from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.data.readers.rows import PartOf, Spot, find_image
from lorax_vlm.data.readers.tables import read_lines
from lorax_vlm.data.splitting import part_called
from lorax_vlm.errors import MalformedRow


def take_table(gathering: Gathering, path: Path, name: str, files: ImageFiles, part_of: PartOf | None) -> None:
    """Read the rows of a file.

    Args:
        gathering: They are given to it.
        path: JSON lines, CSV or parquet.
        name: What records call the file.
        files: Where its images are.
        part_of: The part that a row belongs to by its image. None: the gathering's.

    Raises:
        DataError: It cannot be read at all.
    """
    columns = gathering.options.columns
    if path.suffix.lower() == ".parquet":
        rows, numbered = read_parquet(path)
        for index, embedded in numbered:
            image_of = partial(embedded_image, columns=columns, files=[files], rows=rows, index=index)
            gathering.take(Spot(f"{path}[{index}]", f"{name}[{index}]"), embedded, image_of, part_of)
        return
    find = partial(find_image, columns=columns, files=files)
    for line, row in read_lines(path):
        spot = Spot(f"{path}:{line}", f"{name}:{line}")
        if isinstance(row, MalformedRow):
            gathering.refuse(spot, row)
        else:
            gathering.take(spot, row, find, part_of)


def part_by_folder(root: Path) -> PartOf:
    """Rows belong to the part that a folder below ``root`` is called after, the outermost of such a name."""

    def part_of(image: Stored) -> str | None:
        if not isinstance(image, Path):
            return None
        parts = map(part_called, image.relative_to(root).parts[:-1])
        return next((part for part in parts if part is not None), None)

    return part_of
