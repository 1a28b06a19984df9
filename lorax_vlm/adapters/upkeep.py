"""Is all of a store what it should be, and what in it is of no use? No torch."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.adapters.integrity import check_object
from lorax_vlm.adapters.names import Version
from lorax_vlm.adapters.objects import ObjectFolders
from lorax_vlm.adapters.records import NameRecords
from lorax_vlm.errors import AdapterNotFound, LoraxError
from lorax_vlm.paths import abandoned

_TRIES = 3


@dataclass(frozen=True)
class VerifyReport:
    """What reading and hashing everything in a store found."""

    versions: int
    size_bytes: int
    problems: tuple[str, ...]
    leftovers: tuple[Path, ...]
    """Of writers that were killed; nobody refers to them, and ``clean`` removes them."""


def check_versions(records: NameRecords, objects: ObjectFolders) -> tuple[int, int, list[str]]:
    """Read and hash every version of every name, without a lock.

    Returns:
        Number of versions, their bytes, and all that is wrong.
    """
    problems: list[str] = []
    checked: dict[str, int] = {}
    for name in records.names():
        try:
            versions = records.read(name).versions
        except AdapterNotFound:
            continue  # removed meanwhile
        except LoraxError as error:
            problems.append(str(error))
            continue
        for version in versions:
            if version.object not in checked:
                found, checked[version.object] = _check(records, objects, name, version)
                problems += [f"{name}@{version.number}: {problem}" for problem in found]
    return len(checked), sum(checked.values()), problems


def _check(records: NameRecords, objects: ObjectFolders, name: str, version: Version) -> tuple[list[str], int]:
    """What is wrong with a version; nothing when it was removed or replaced while it was read."""
    found: list[str] = []
    size = 0
    for _ in range(_TRIES):
        found, size = check_object(objects.path(version.object), version.object)
        try:
            gone = version not in records.read(name).versions
        except AdapterNotFound:
            gone = True
        except LoraxError:  # its record is damaged, which does not make its files sound
            gone = False
        if not found or gone:
            return [], size
    return found, size


def unused(records: NameRecords, objects: ObjectFolders) -> Iterator[Path]:
    """What nobody refers to; only for whoever holds the store's lock, because a version that is being added is such."""
    broken, used = False, set()
    for name in records.names():
        try:
            used |= {version.object for version in records.read(name).versions}
        except LoraxError:
            broken = True  # its versions may be among those nobody else refers to
    yield from objects.set_aside()
    yield from records.leftovers()
    if not broken:
        yield from (objects.path(digest) for digest in objects.digests() if digest not in used)


class Upkeep:
    """What a store has to clean up; only for whoever holds its lock, because what is being added looks left over."""

    def __init__(self, root: Path, records: NameRecords, objects: ObjectFolders) -> None:
        """Look at the store in a folder."""
        self._root, self._records, self._objects = root, records, objects

    def leftovers(self) -> Iterator[Path]:
        """What writers that died left, and what nobody refers to."""
        yield from abandoned(self._root)
        yield from unused(self._records, self._objects)

    def remove_leftovers(self) -> int:
        """Remove them; returns how many files and folders that were."""
        leftovers = list(self.leftovers())
        for path in leftovers:
            if path.parent == self._objects.path(""):
                self._objects.remove(path.name)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return len(leftovers)
