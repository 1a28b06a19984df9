"""What all sources of examples share: held-out images, checks of image files, duplicates, and the list of bad rows."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.errors import DataError, UsageError


def hold_out(
    examples: Sequence[Example], image_key: Callable[[Example], str], share: float
) -> tuple[list[Example], list[Example]]:
    """Split by a hash of the image's name: the same on every run and machine, all rows of an image on one side.

    Raises:
        UsageError: ``share`` is not above 0 and below 1.
    """
    if not 0 < share < 1:
        raise UsageError(f"validation_share must be above 0 and below 1, got {share}.")
    train = [e for e in examples if not is_held_out(image_key(e), share)]
    validation = [e for e in examples if is_held_out(image_key(e), share)]
    if not validation and examples:  # a small set can hash to one side: hold out its last image
        last = image_key(examples[-1])
        validation = [e for e in train if image_key(e) == last]
        train = [e for e in train if image_key(e) != last]
    return train, validation


def is_held_out(key: str, share: float) -> bool:
    """Whether the image of this key belongs to the validation examples."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def make_splits(
    train: list[Example],
    validation: list[Example],
    source: str,
    problems: Sequence[str],
    *,
    skip_bad_rows: bool,
    hint: str = "",
) -> DataSplits:
    """Put both sides together; training examples whose image is also held out are left out, and counted.

    Raises:
        DataError: There are problems and ``skip_bad_rows`` is false, or one side is empty.
    """
    if problems and not skip_bad_rows:
        raise DataError(source, problems, hint)
    kept = without_images_of(train, validation)
    if not kept or not validation:
        facts = f"{len(kept)} training and {len(validation)} validation examples; both need at least one"
        if len(kept) < len(train):
            facts += f". {len(train) - len(kept)} training examples show images of the validation examples"
        raise DataError(source, [*problems, facts])
    return DataSplits(kept, validation, source, tuple(problems), len(train) - len(kept))


def without_images_of(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    """The training examples whose image is, byte for byte, none of the validation's.

    Only files and encoded bytes can be compared; they are hashed only where their sizes agree.
    """
    digests: dict[object, str] = {}

    def digest(image: Path | bytes) -> str:
        if image not in digests:
            digests[image] = _digest(image)
        return digests[image]

    held_out: dict[int, set[str]] = defaultdict(set)
    for example in validation:
        if isinstance(example.image, Path | bytes):
            held_out[_size(example.image)].add(digest(example.image))
    return [
        example
        for example in train
        if not isinstance(example.image, Path | bytes)
        or _size(example.image) not in held_out
        or digest(example.image) not in held_out[_size(example.image)]
    ]


def _size(image: Path | bytes) -> int:
    return len(image) if isinstance(image, bytes) else image.stat().st_size


def _digest(image: Path | bytes) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def image_file_problem(path: Path, name: str) -> str | None:
    """What is wrong with an image file, as far as can be told without decoding it."""
    if not path.is_file():
        return f"file {name!r} does not exist"
    try:
        with Image.open(path) as image:
            image.verify()  # the rest shows when it is read for training
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return f"file {name!r} is not a readable image ({type(error).__name__})"
    return None
