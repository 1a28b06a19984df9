"""Which files of a folder are images that somebody put there: by their suffix, without what systems leave behind."""

import os
from collections.abc import Iterator
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
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
