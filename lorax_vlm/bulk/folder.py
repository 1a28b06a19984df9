"""The images of a folder in the order in which people count, or of a list, and what the texts are called. No torch."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.bulk.items import Item
from lorax_vlm.data.readers.listing import is_image_name, is_left_behind, text_stems
from lorax_vlm.errors import PathError, UsageError
from lorax_vlm.paths import naming

_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key by which ``image2`` comes before ``image10``.

    >>> sorted(["b", "a10", "a2"], key=natural)
    ['a2', 'a10', 'b']
    """
    parts = _DIGITS.split(name.casefold())
    return tuple((0, int(part), "") if place % 2 else (1, 0, part) for place, part in enumerate(parts))


@dataclass(frozen=True)
class ImageFolder:
    """A folder with images. It may be gone through more than once."""

    root: Path
    recursive: bool = False
    follow_links: bool = False
    """Go into folders that are links. Files that are links are always images like others."""

    def __iter__(self) -> Iterator[Item]:
        """Its images, folder by folder.

        Raises:
            PathError: A folder cannot be read.
        """
        yield from self._below(self.root, "", frozenset({os.path.realpath(self.root)}))

    def _below(self, folder: Path, name: str, above: frozenset[str]) -> Iterator[Item]:
        images, folders = self._listed(folder)
        for file, stem in zip(images, text_stems(images), strict=True):
            yield Item(folder / file, name + file, name + stem)
        for sub in folders if self.recursive else ():
            real = os.path.realpath(folder / sub)
            if real not in above:  # a link to a folder that it lies in
                yield from self._below(folder / sub, f"{name}{sub}/", above | {real})

    def _listed(self, folder: Path) -> tuple[list[str], list[str]]:
        with naming(folder), os.scandir(folder) as entries:
            kept = [
                (entry.name, _kind(entry, self.follow_links)) for entry in entries if not is_left_behind(entry.name)
            ]
        images = sorted((name for name, kind in kept if kind == "file" and is_image_name(name)), key=_order)
        return images, sorted((name for name, kind in kept if kind == "folder"), key=_order)

    def _has_images(self, folder: Path) -> bool:
        """Whether there are some in a folder itself; nothing is sorted for it."""
        with naming(folder), os.scandir(folder) as entries:
            return any(is_image_name(e.name) and not is_left_behind(e.name) and e.is_file() for e in entries)

    def require_images(self) -> None:
        """Find out whether there is anything to do.

        Raises:
            PathError: There is no such folder, or no image in it.
        """
        if not self.root.is_dir():
            raise PathError(str(self.root), "it is no folder" if self.root.exists() else "no such folder")
        if not self._has_images(self.root) and next(iter(self), None) is None:
            below = not self.recursive and next(iter(ImageFolder(self.root, recursive=True)), None) is not None
            hint = "Its sub folders have some: --recursive." if below else ""
            raise PathError(str(self.root), "it holds no images", hint)


@dataclass(frozen=True)
class ImageList:
    """Files that are listed one by one; the folder that holds them all is where their names begin."""

    paths: tuple[str, ...]

    @property
    def root(self) -> Path:
        """The folder below which they are."""
        return Path(os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in self.paths]))

    def __iter__(self) -> Iterator[Item]:
        """Its images in the order of the list, each once; texts are called as they would be of the whole folder."""
        root = self.root
        paths = list(dict.fromkeys(os.path.abspath(path) for path in self.paths))
        by_folder: dict[str, list[str]] = {}
        for path in paths:
            by_folder.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
        stems: dict[str, str] = {}
        for folder, names in by_folder.items():
            beside = _images_in(folder)
            every = list(dict.fromkeys([*beside, *names]))
            stems |= {os.path.join(folder, name): stem for name, stem in zip(every, text_stems(every), strict=True)}
        for path in paths:
            below = os.path.relpath(os.path.dirname(path), root)
            within = "" if below == os.curdir else f"{below}/".replace(os.sep, "/")
            yield Item(Path(path), within + os.path.basename(path), within + stems[path])

    def require_images(self) -> None:
        """Raise ``UsageError`` for an empty list."""
        if not self.paths:
            raise UsageError("The list of images is empty; it has a path a line.")


def _images_in(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if is_image_name(name) and not is_left_behind(name))
    except OSError:  # its images fail, one by one
        return []


def _order(name: str) -> tuple[object, str]:
    return natural(name), name


def _kind(entry: os.DirEntry[str], follow_links: bool) -> str:
    """``file``, ``folder``, or nothing of the kind: a device is no image, whatever it is called."""
    try:
        if entry.is_dir(follow_symlinks=follow_links):
            return "folder"
        # A link that leads nowhere is an image that cannot be read: that is said, not passed over.
        return "file" if (entry.is_symlink() and not entry.is_dir()) or entry.is_file() else ""
    except OSError:
        return "file"
