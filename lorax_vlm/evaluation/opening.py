"""Images of examples, opened when they are needed and let go.

A photograph of 12 megapixels takes 36 MB when it is decoded, so never more of them are held than a batch needs. What
names an image is handed on as it is, for whoever answers opens it with its batch; what draws or fetches one is called
here, a few at a time.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence

from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.errors import LoraxError, RowFailed

MOST_PIXELS = 12_000_000
"""Of opened images: a chunk that has as many gets no further one."""

Source = ImageSource | LoraxError
"""What an image can be read from, or why it cannot be read."""


def sources_in_turn(examples: Sequence[Example], keys: Sequence[Hashable]) -> Iterator[list[tuple[int, Source]]]:
    """Rows in chunks, each row with its number and its image's source; rows of one image share the object.

    Args:
        examples: Whose images are wanted.
        keys: One per example, equal for equal images.

    Yields:
        A list that is emptied when the next one is asked for, so that its images can leave memory.
    """
    chunk: list[tuple[int, Source]] = []
    named: dict[Hashable, Source] = {}
    opened: dict[Hashable, Source] = {}
    pixels = 0
    for row, (example, key) in enumerate(zip(examples, keys, strict=True)):
        if not callable(example.image):
            chunk.append((row, named.setdefault(key, example.image)))
            continue
        if key not in opened:
            if pixels >= MOST_PIXELS:
                yield chunk
                chunk.clear()
                opened.clear()
                pixels = 0
            opened[key] = found = _open(example, row)
            pixels += found.width * found.height if isinstance(found, Image.Image) else 0
        chunk.append((row, opened[key]))
    if chunk:
        yield chunk


def pictures_in_turn(
    examples: Sequence[Example], most_rows: int | None = None
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Row numbers and opened images in chunks; neighbours with one image share the object.

    Args:
        examples: Whose images to open.
        most_rows: Of a chunk. None: only pixels are counted.

    Yields:
        Lists that are emptied when the next ones are asked for.

    Raises:
        ImageError: An image cannot be read.
    """
    rows: list[int] = []
    pictures: list[Image.Image] = []
    opened: dict[Hashable, Image.Image] = {}
    pixels = 0
    for row, example in enumerate(examples):
        key = example.image_key
        if rows and (len(rows) == most_rows or (key not in opened and pixels >= MOST_PIXELS)):
            yield rows, pictures
            rows.clear()
            pictures.clear()
            opened.clear()
            pixels = 0
        if key not in opened:
            opened[key] = example.open_image()
            pixels += opened[key].width * opened[key].height
        rows.append(row)
        pictures.append(opened[key])
    if rows:
        yield rows, pictures


def readable(source: Source) -> ImageSource:
    """What an image can be read from.

    Raises:
        LoraxError: It cannot.
    """
    if isinstance(source, LoraxError):
        raise source
    return source


def distinct(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """The different image objects, and for each of ``images`` the place of its object among them."""
    places: dict[int, int] = {}
    found: list[Image.Image] = []
    for image in images:
        if id(image) not in places:
            places[id(image)] = len(found)
            found.append(image)
    return found, [places[id(image)] for image in images]


def _open(example: Example, row: int) -> Source:
    try:
        return example.open_image()
    except LoraxError as error:
        return error
    except Exception as error:  # of somebody's function; its row fails alone, as rows do everywhere
        return RowFailed(row, error)


class OpenedOnDemand(Mapping[str, Image.Image]):
    """Images by name of their example, each opened when it is asked for and not kept."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = {example.name: example for example in examples}

    def __getitem__(self, name: str) -> Image.Image:
        return self._examples[name].open_image()

    def __contains__(self, name: object) -> bool:
        return name in self._examples

    def __iter__(self) -> Iterator[str]:
        return iter(self._examples)

    def __len__(self) -> int:
        return len(self._examples)
