"""Images that show the same but for a crop, another size, brightness or compression. No torch.

Candidates are found by perceptual hashes (``imagehash.phash`` of 256 bits) and looked at again: two images are alike
when the one correlates with the other, or with a crop of its middle, at 32 by 32 pixels in colour.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lorax_vlm.errors import MissingExtra

HASH_SIDE = 16
MOST_BITS = 90
"""Of 256 in which candidates may differ: half of all crops by a tenth differ in 76 of them."""
LEAST_CORRELATION = 0.92
"""From which on two images are taken for one; see ``benchmarks/near_duplicates.py`` for what it finds."""
_KEPT_PX, _COMPARED_PX = 40, 32
_CROPS = (0.0, 0.03, 0.06, 0.1)
_AT_ONCE = 256
_Array = np.ndarray


@dataclass(frozen=True)
class Looks:
    """What is kept of an image to compare it by."""

    bits: _Array
    """``(4,)``, 64 bits each."""
    small: _Array
    """``(40, 40, 3)``, eight bits each."""

    @classmethod
    def of(cls, picture: Image.Image) -> "Looks":
        """Those of a picture.

        Raises:
            MissingExtra: The library of hashes is not installed.
        """
        try:
            import imagehash
        except ImportError:
            raise MissingExtra("imagehash", "data", "Finding near duplicates") from None
        rgb = picture.convert("RGB")
        found = imagehash.phash(rgb, hash_size=HASH_SIDE).hash.ravel()
        return cls(
            np.packbits(found).view(np.uint64), np.asarray(rgb.resize((_KEPT_PX, _KEPT_PX), Image.Resampling.BOX))
        )


def near_duplicates(looks: Iterable[Looks]) -> list[list[int]]:
    """Groups of at least two images that are alike, by their numbers; each image is in one group at most.

    Every pair is compared, so the time grows with the square of their number: 20,000 images take about ten seconds.
    """
    known = list(looks)
    group = list(range(len(known)))

    def first(number: int) -> int:
        while group[number] != number:
            group[number] = number = group[group[number]]
        return number

    for one, other in _candidates(known):
        if first(one) != first(other) and correlation(known[one], known[other]) >= LEAST_CORRELATION:
            group[max(first(one), first(other))] = min(first(one), first(other))
    members: dict[int, list[int]] = {}
    for number in range(len(known)):
        members.setdefault(first(number), []).append(number)
    return [numbers for numbers in members.values() if len(numbers) > 1]


def _candidates(known: list[Looks]) -> Iterator[tuple[int, int]]:
    """Pairs whose hashes are near each other."""
    bits = np.array([looks.bits for looks in known]).reshape(-1, HASH_SIDE**2 // 64)
    for start in range(0, len(bits), _AT_ONCE):
        some, rest = bits[start : start + _AT_ONCE, None], bits[None, start:]
        apart = np.bitwise_count(some ^ rest).sum(axis=-1)
        for one, other in np.argwhere(apart <= MOST_BITS).tolist():
            if other > one:
                yield start + one, start + other


def correlation(one: Looks, other: Looks) -> float:
    """How alike two images are, at most 1: the better of the one with crops of the other, and the other way round."""
    first, second = _views(one.small), _views(other.small)
    return float(max((second @ first[0]).max(), (first @ second[0]).max()))


def _views(small: _Array) -> _Array:
    """The image and crops of its middle, ``(4, 3072)``, without their mean and of length one."""
    picture, views = Image.fromarray(small), []
    for share in _CROPS:
        margin = share / 2 * _KEPT_PX
        box = (margin, margin, _KEPT_PX - margin, _KEPT_PX - margin)
        view = np.asarray(picture.resize((_COMPARED_PX, _COMPARED_PX), Image.Resampling.BOX, box=box), float).ravel()
        view -= view.mean()
        views.append(view / max(float(np.linalg.norm(view)), 1e-9))
    return np.array(views)
