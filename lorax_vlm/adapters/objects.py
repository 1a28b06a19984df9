"""The versions of a store, each a folder named by the digest of its manifest. No torch.

A folder comes into its place, and leaves it, by renaming, so what is at its place is whole. What was damaged there
since is replaced by a sound folder of the same digest. All of this is for whoever holds the store's lock.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lorax_vlm.adapters.integrity import SIGNATURE_FILE, check_object
from lorax_vlm.paths import naming, sync_folder

_REMOVED = ".removed-"


class ObjectFolders:
    """The folders below one."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / "objects"

    def path(self, digest: str) -> Path:
        """Where the version of a digest is."""
        return self._folder / digest

    def put(self, scratch: Path, digest: str, *, trust_signature: bool = False) -> None:
        """Take in a folder in the store's file system; one of its digest that is there and sound stays.

        Args:
            scratch: The folder. It is gone, or of no more use, afterwards.
            digest: Of its manifest.
            trust_signature: Its signature takes the place of one that is there. A first one is always taken.

        Raises:
            PathError: It cannot be moved.
        """
        place = self.path(digest)
        with naming(self._folder):
            self._folder.mkdir(exist_ok=True)
            if os.path.lexists(place) and not check_object(place, digest)[0]:
                known = place / SIGNATURE_FILE
                if (scratch / SIGNATURE_FILE).is_file() and (trust_signature or not known.is_file()):
                    os.replace(scratch / SIGNATURE_FILE, known)
                    sync_folder(place)
                return
            self._set_aside(place)
            scratch.chmod(0o755)
            os.rename(scratch, place)
            sync_folder(self._folder)
        self.remove_set_aside()

    def remove(self, digest: str) -> None:
        """Remove a version: out of its place first, in one step.

        Raises:
            PathError: It cannot be removed.
        """
        with naming(self._folder):
            self._set_aside(self.path(digest))
            sync_folder(self._folder)
        self.remove_set_aside()

    def _set_aside(self, place: Path) -> None:
        if os.path.lexists(place):
            aside = Path(tempfile.mkdtemp(prefix=_REMOVED, dir=self._root))
            os.rename(place, aside / place.name)

    def remove_set_aside(self) -> None:
        """Remove what was taken out of its place; what cannot be removed stays a leftover."""
        for path in self.set_aside():
            shutil.rmtree(path, ignore_errors=True)

    def set_aside(self) -> Iterator[Path]:
        """Folders that were taken out of their places and not removed yet."""
        return self._root.glob(f"{_REMOVED}*")

    def digests(self) -> list[str]:
        """Names of all folders, sorted."""
        try:
            return sorted(entry.name for entry in os.scandir(self._folder))
        except FileNotFoundError:
            return []
