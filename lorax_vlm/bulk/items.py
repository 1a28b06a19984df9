"""What a bulk job is about, one image at a time. No torch."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorax_vlm.bulk.journal import Stamp
from lorax_vlm.bulk.remote_image import RemoteImage
from lorax_vlm.data.image_facts import RowImage, Stored
from lorax_vlm.data.images import read_image_bytes
from lorax_vlm.errors import LoraxError


@dataclass(frozen=True)
class Item:
    """An image, and perhaps a question about it."""

    image: Stored | RemoteImage
    """A file, bytes in a table, or what is behind an address."""
    name: str
    """What is different from all others: its path below the folder, with slashes, or what its row says."""
    stem: str
    """What a text file about it is called, without an ending; no two items of a folder have the same."""
    question: str | None = None
    """None: a caption is asked for."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns of its row, which tables keep."""
    place: str = ""
    """Where its row is, for people."""
    problem: LoraxError | None = None
    """Why it cannot be asked about, where that is known before its image is opened."""

    @property
    def folder(self) -> str:
        """Name of the folder that its file is in."""
        if isinstance(self.image, RemoteImage):
            return f"{self.image.folder.url}/{self.image.name}".split("/")[-2]
        return self.image.parent.name if isinstance(self.image, Path) else ""

    def read(self) -> bytes:
        """Its encoded image.

        Raises:
            LoraxError: It cannot be read.
        """
        if self.problem is not None:
            raise self.problem
        if isinstance(self.image, RowImage | RemoteImage):
            return self.image.read()
        return self.image if isinstance(self.image, bytes) else read_image_bytes(self.image)

    def digest(self) -> str:
        """SHA-256 of its encoded image; errors as of ``read``."""
        return hashlib.sha256(self.read()).hexdigest()

    def stamp(self) -> Stamp | None:
        """What its file looks like from outside, and where it is; None where there is none, or it cannot be looked at.

        Copies and archives keep times, and renamed files their own: size and time say too little of what a name is.
        """
        if isinstance(self.image, RemoteImage):
            return self.image.stamp
        if not isinstance(self.image, Path) or self.problem is not None:
            return None
        try:
            found = self.image.stat()
        except OSError:
            return None
        facts = f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} {found.st_dev} ".encode() + os.fsencode(
            os.path.abspath(self.image)
        )
        return Stamp(found.st_size, int.from_bytes(hashlib.blake2b(facts, digest_size=7).digest()))
