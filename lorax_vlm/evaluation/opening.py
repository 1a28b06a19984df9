"""Images of examples, opened when they are needed and let go.

A photograph of 12 megapixels takes 48 MB when it is decoded, so never more of them are held than one batch needs.
"""

from collections.abc import Iterator, Mapping, Sequence

from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.data.image_keys import example_keys
from lorax_vlm.errors import LoraxError

MOST_ROWS, MOST_PIXELS = 32, 8_000_000
"""Of a chunk: nothing is added to one that has so many rows, or images with so many pixels."""

Opened = Image.Image | LoraxError
"""An image, or why it could not be read."""


def open_in_turn(
    examples: Sequence[Example], keys: Sequence[str], *, most_rows: int = MOST_ROWS, most_pixels: int = MOST_PIXELS
) -> Iterator[list[tuple[int, Opened]]]:
    """Rows in chunks, each row with its number and its image; neighbours with one image share the object.

    Args:
        examples: Whose images to open.
        keys: Of ``example_keys``.
        most_rows: Of a chunk.
        most_pixels: A chunk whose images have as many gets no further image.

    Yields:
        A list that is emptied when the next one is asked for, so that its images can leave memory.
    """
    chunk: list[tuple[int, Opened]] = []
    opened: dict[str, Opened] = {}
    pixels = 0
    for row, (example, key) in enumerate(zip(examples, keys, strict=True)):
        if len(chunk) == most_rows or (chunk and key not in opened and pixels >= most_pixels):
            yield chunk
            chunk.clear()
            opened.clear()
            pixels = 0
        if key not in opened:
            opened[key] = open_example(example)
            pixels += _pixels(opened[key])
        chunk.append((row, opened[key]))
    if chunk:
        yield chunk


def pictures_in_turn(
    examples: Sequence[Example], most_rows: int = MOST_ROWS
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Row numbers and images as of ``open_in_turn``, where every image must be readable.

    Raises:
        ImageError: One is not.
    """
    for chunk in open_in_turn(examples, example_keys(examples), most_rows=most_rows):
        pictures = [_readable(image) for _, image in chunk]
        yield [row for row, _ in chunk], pictures
        pictures.clear()


def distinct(images: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """The different image objects, and for each of ``images`` the place of its object among them."""
    places: dict[int, int] = {}
    found: list[Image.Image] = []
    for image in images:
        if id(image) not in places:
            places[id(image)] = len(found)
            found.append(image)
    return found, [places[id(image)] for image in images]


def open_example(example: Example) -> Opened:
    """An example's image, or the error that tells why it cannot be read."""
    try:
        return example.open_image()
    except LoraxError as error:
        return error


def _pixels(image: Opened) -> int:
    return image.width * image.height if isinstance(image, Image.Image) else 0


def _readable(image: Opened) -> Image.Image:
    if isinstance(image, LoraxError):
        raise image
    return image


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
