"""From what a row says of its image to a file inside one folder: by name, or by number.

A row never leads out of the folder, whatever it says. Files in it may be links that its owner made. Where two files
could be meant, neither is taken.

No torch.
"""

import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from lorax_vlm.data.readers.listing import images_below, is_image_name
from lorax_vlm.data.readers.values import id_text
from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import quoted, text_problem

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_COCO = re.compile(r"COCO_[A-Za-z]+\d{4}_\d{12}")
_NUMBERED = re.compile(r"(?P<naming>(?:.*[^0-9])?)(?P<number>[0-9]+)", re.DOTALL)
_SPLIT_WORD = re.compile(r"(train|val|test|dev)(idation)?\d*", re.IGNORECASE)
_SPLIT_FOLDER = re.compile(r"(train|val|test|dev|image|img|vg_)", re.IGNORECASE)
_LONGEST_NAME, _LONGEST_PATH, _LONGEST_NUMBER = 255, 4000, 18


class ImageFiles:
    """The images of one folder. Its listing is made once, and only when it is needed."""

    def __init__(self, folder: Path, *, sub_folders: bool = False, links_out: bool = True) -> None:
        """Look at nothing yet.

        Args:
            folder: Names are relative to it.
            links_out: Files in it may be links to files elsewhere: its owner made them. False for what was downloaded.
            sub_folders: A plain name may also lie in a sub folder: in one called like a split or like images, and
                when the folder itself has no images, in any.
        """
        self.folder = folder
        self.notes: Counter[str] = Counter()
        """What was read otherwise than it is written, and how often."""
        self._absolute = os.path.abspath(folder)
        self._roots = tuple(dict.fromkeys((self._absolute, os.path.realpath(folder))))
        self._found: dict[str, Path] = {}  # by name, as many rows are about one image
        self._sub_folders, self._links_out = sub_folders, links_out
        self._composed: dict[str, dict[str, list[str]]] = {}
        self._folded: dict[str, dict[str, str]] = {}
        self._index: _Index | None = None

    def named(self, name: Any, field: str = "file_name") -> Path:
        """The file of a name.

        Raises:
            MalformedRow: There is none, or two, or it is not one of this folder.
        """
        if isinstance(name, str) and name in self._found:
            return self._found[name]
        name = _require_name(name, field)
        spellings = [name, name.replace("\\", "/")] if "\\" in name else [name]
        for spelling in spellings:
            inside = self._inside(spelling, field)
            if (found := self._exact(inside, field)) is not None:
                return self._counted(name, found, spelling != name)
        for spelling in spellings:
            inside = self._inside(spelling, field)
            found = self._composed_otherwise(inside, field) or self._in_sub_folder(inside, field)
            if found is not None:
                return self._counted(name, found, spelling != name)
        raise MalformedRow(
            f"file {quoted(name)} does not exist{self._near(name)}",
            field=field,
            value=quoted(name),
            wanted=f"a file in {self.folder.name or self.folder}",
        )

    def of_id(self, value: Any, field: str = "image_id") -> Path:
        """The file of an image's id: called so, or numbered so.

        Raises:
            MalformedRow: It is no id, there is no such file, or there are two.
        """
        text = id_text(value)
        if text is None:
            raise MalformedRow(f"{field} {quoted(value)} is no id", field=field, value=quoted(value), wanted="an id")
        if is_image_name(text):
            return self.named(text, field)
        found = self._files().of_id(text, isinstance(value, str))
        if len(found) == 1:
            return found[0]
        if not found:
            namings = ", ".join(map(quoted, self._files().namings[:3]))
            ways = f"; numbered files are named in several ways ({namings}), so none is taken" if namings else ""
            raise MalformedRow(
                f"no image file for {field} {text if len(text) < 60 else quoted(text)}{ways}",
                field=field,
                value=quoted(value),
                wanted=f"a file of that name or number in {self.folder.name or self.folder}",
            )
        raise _two(f"{field} {quoted(value)}", found, self.folder, field)

    def _counted(self, name: str, found: Path, turned: bool) -> Path:
        if turned:
            self.notes["paths with backslashes, read as /"] += 1
        else:
            self._found[name] = found
        return found

    def _inside(self, name: str, field: str) -> str:
        """The name relative to the folder, in its shortest form; nothing is looked at."""
        path = os.path.normpath(os.path.join(self._absolute, name))
        for root in self._roots:
            if path.startswith(_below(root)):
                return os.path.relpath(path, root)
        raise MalformedRow(
            f"{field} {quoted(name)} leads out of the folder",
            field=field,
            value=quoted(name),
            wanted="a path inside of the folder",
        )

    def _exact(self, inside: str, field: str) -> Path | None:
        path = self.folder / inside
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(path):
                return None
            raise _unusable(inside, "a link that leads nowhere", field) from None
        except OSError as error:
            raise _unusable(inside, f"not readable: {error.strerror or type(error).__name__}", field) from error
        if not self._links_out and not os.path.realpath(path).startswith(_below(self._roots[-1])):
            raise _unusable(inside, "a link that leads out of the folder", field)
        if stat.S_ISREG(mode):
            return path
        raise _unusable(inside, "a folder" if stat.S_ISDIR(mode) else "no regular file", field)

    def _is_there(self, inside: str) -> bool:
        return os.path.lexists(self.folder / inside)

    def _names_in(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.folder / folder)
        except OSError:  # no folder, or none that may be looked into: then nothing is found in it
            return []

    def _images(self) -> list[Path]:
        return images_below(self.folder)

    def _composed_otherwise(self, inside: str, field: str) -> Path | None:
        """The file whose name has the same accents, put together in another way."""
        reached = ""
        for part in PurePosixPath(inside).parts:
            if self._is_there(os.path.join(reached, part)):
                reached = os.path.join(reached, part)
                continue
            others = self._listing(reached).get(unicodedata.normalize("NFC", part), [])
            if len(others) > 1:
                raise _two(quoted(inside), [self.folder / reached / other for other in others], self.folder, field)
            if not others:
                return None
            reached = os.path.join(reached, others[0])
        return self._exact(reached, field)

    def _listing(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._composed:
            names: dict[str, list[str]] = defaultdict(list)
            for name in sorted(self._names_in(folder)):
                names[unicodedata.normalize("NFC", name)].append(name)
            self._composed[folder] = names
        return self._composed[folder]

    def _folded_listing(self, folder: str) -> dict[str, str]:
        """The first name of each spelling, whatever its letters' case."""
        if folder not in self._folded:
            names: dict[str, str] = {}
            for known, others in self._listing(folder).items():
                names.setdefault(known.casefold(), others[0])
            self._folded[folder] = names
        return self._folded[folder]

    def _in_sub_folder(self, inside: str, field: str) -> Path | None:
        if not self._sub_folders:
            return None
        above, _, below = inside.partition("/")
        if below and above == os.path.basename(self._absolute):  # a path from above the folder that was given
            return self._exact(below, field)
        if below:
            return None
        found = self._files().called(inside)
        if len(found) > 1:
            raise _two(quoted(inside), found, self.folder, field)
        return found[0] if found else None

    def _files(self) -> "_Index":
        if self._index is None:
            self._index = _Index(self.folder, self._images())
        return self._index

    def _near(self, name: str) -> str:
        """What may have been meant, for the message."""
        plain = os.path.basename(name.replace("\\", "/"))
        folder = os.path.dirname(name) if "\\" not in name else ""
        folders = [folder] if not os.path.isabs(folder) and ".." not in folder.split("/") else []
        for listing in map(self._folded_listing, folders):
            if (other := listing.get(unicodedata.normalize("NFC", plain).casefold())) is not None:
                return f"; there is {quoted(other)}"
        return "; it has backslashes, which separate folders on Windows only" if "\\" in name else ""


def _require_name(name: Any, field: str) -> str:
    found = quoted(name)
    if not isinstance(name, str) or not name:
        raise MalformedRow(f"{field} is {found}, expected the name of a file", field=field, value=found)
    wrong = text_problem(name)
    if wrong is not None:
        raise MalformedRow(f"{field} has {wrong}", field=field, value=found, wanted="the name of a file")
    if name[:5].lower() == "data:":
        wrong = "is an image as text (a data URI), not the name of a file"
    elif "://" in name:
        wrong = "is an address; nothing is fetched for data: download the images"
    elif _DRIVE.match(name):
        wrong = "is a path of a Windows machine and leads out of the folder"
    elif len(name) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in name.split("/")):
        wrong = "is too long for the name of a file"
    if wrong is not None:
        raise MalformedRow(f"{field} {found} {wrong}", field=field, value=found, wanted="the name of a file")
    return name


def _unusable(name: str, kind: str, field: str) -> MalformedRow:
    return MalformedRow(f"file {quoted(name)} is {kind}", field=field, value=quoted(name), wanted="an image file")


def _below(folder: str) -> str:
    """How paths below a folder begin."""
    return os.path.join(folder, "")


def _two(what: str, found: list[Path], folder: Path, field: str) -> MalformedRow:
    names = ", ".join(quoted(str(path.relative_to(folder))) for path in found[:3])
    return MalformedRow(f"{what} may be {len(found)} files: {names}", field=field, value=what, wanted="one file")


class _Index:
    """The images of a folder by name and number: those in it, then those in sub folders."""

    def __init__(self, folder: Path, everything: list[Path]) -> None:
        own = [path for path in everything if path.parent == folder]
        others = [path for path in everything if path.parent != folder]
        if own:  # then sub folders may hold anything, such as small copies
            others = [path for path in others if _SPLIT_FOLDER.match(path.relative_to(folder).parts[0])]
        self._levels = [_Level(paths) for paths in (own, others) if paths]

    def called(self, name: str) -> list[Path]:
        """The files of a plain name."""
        key = unicodedata.normalize("NFC", name)
        return next((level.by_name[key] for level in self._levels if key in level.by_name), [])

    def of_id(self, text: str, as_written: bool) -> list[Path]:
        """The files that an id names, or whose number it is.

        Args:
            text: The id.
            as_written: It was text, so it names a file before it counts one.
        """
        found: Iterator[list[Path]] = (level.of_id(text, as_written) for level in self._levels)
        return next(filter(None, found), [])

    @property
    def namings(self) -> list[str]:
        """The ways in which numbered files are named, when there are several and none tells a number."""
        return [naming for level in self._levels for naming in level.namings]


class _Level:
    """Images that are looked at together."""

    def __init__(self, paths: list[Path]) -> None:
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._coco: dict[int, list[Path]] = defaultdict(list)
        self._plain: dict[int, list[Path]] = defaultdict(list)
        ending: dict[str, dict[int, list[Path]]] = defaultdict(lambda: defaultdict(list))
        for path in paths:
            self.by_name[unicodedata.normalize("NFC", path.name)].append(path)
            self._by_stem[unicodedata.normalize("NFC", path.stem)].append(path)
            match = _NUMBERED.fullmatch(path.stem)
            if match is None or len(match["number"]) > _LONGEST_NUMBER:
                continue
            naming, number = match["naming"], int(match["number"])
            if _COCO.fullmatch(path.stem):
                self._coco[number].append(path)
            elif not naming:
                self._plain[number].append(path)
            else:
                ending[_SPLIT_WORD.sub("", naming)][number].append(path)
        alone = not (self._coco or self._plain)  # files that are a number say it; others only when there are no such
        self._ending = next(iter(ending.values())) if alone and len(ending) == 1 else {}
        self.namings = sorted(ending) if alone and len(ending) > 1 else []

    def of_id(self, text: str, as_written: bool) -> list[Path]:
        """The files of an id; COCO's names tell a number best."""
        key = unicodedata.normalize("NFC", text)
        named = self._by_stem.get(key, [])
        if not text.isascii() or not text.isdecimal() or len(text) > _LONGEST_NUMBER:
            return named
        number = int(text)
        counted = self._plain.get(number, [])
        plain = named or counted if as_written else counted
        return self._coco.get(number) or plain or self._ending.get(number, []) or named
