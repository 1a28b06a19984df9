"""Which files of a folder are images that somebody put there: by their suffix, without what systems leave behind.

No torch.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "MPO": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
}
"""By Pillow's name of a format, the usual one first."""
_LEFT_BEHIND = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is one that a system made for itself, such as ``.DS_Store`` and ``._photo.jpg``."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def is_image_name(name: str) -> bool:
    """Whether a file is called like an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their names, without what systems leave behind."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_left_behind(name))
        for name in sorted(files):
            if not is_left_behind(name):
                yield Path(parent, name)


def images_below(folder: Path) -> list[Path]:
    """The images of a folder and its sub folders."""
    return [path for path in walk(folder) if is_image_name(path.name)]


def marked_stem(name: str) -> str:
    """What a text is called about an image whose name is another one's but for capitals or how accents are written."""
    return f"{name}.{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def text_stems(names: Sequence[str]) -> list[str]:
    """What texts about the images of one folder are called, without an ending: no two alike, capitals or not.

    ``a.jpg`` is ``a``. Where there is ``a.png`` as well, they are ``a.jpg`` and ``a.png``; and names that differ in
    capitals only have a few digits of their SHA-256 as well.

    >>> text_stems(["a.jpg", "b.jpg", "b.png"])
    ['a', 'b.jpg', 'b.png']
    """
    chosen = [os.path.splitext(name)[0] for name in names]
    for change in (str, marked_stem):
        # Whoever gets a longer name may meet another one's: until nobody does.
        for _ in range(len(names)):
            counts = Counter(map(_same, chosen))
            longer = [change(n) if counts[_same(c)] > 1 else c for n, c in zip(names, chosen, strict=True)]
            if longer == chosen:
                break
            chosen = longer
    return chosen


def _same(name: str) -> str:
    """What file systems that ignore capitals, or how accents are written, take for one name."""
    if name.isascii():
        return name.casefold()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
