"""One image behind an fsspec address. No torch."""

import hashlib
import time
from dataclasses import dataclass

from lorax_vlm.bulk.journal import Stamp
from lorax_vlm.errors import InterruptedTransfer
from lorax_vlm.sharing.places import RemoteFile, RemoteFolder

_TRIES, _WAIT_S = 3, 1.0


@dataclass(frozen=True)
class RemoteImage:
    """An image behind an address, as its folder's listing shows it."""

    folder: RemoteFolder
    name: str
    file: RemoteFile

    @property
    def stamp(self) -> Stamp:
        """What it looks like from outside, and where it is."""
        facts = f"{self.folder.url}/{self.name} {self.file.version}".encode()
        return Stamp(self.file.size, int.from_bytes(hashlib.blake2b(facts, digest_size=7).digest()))

    def read(self) -> bytes:
        """Its encoded image; a connection that breaks is tried again.

        Raises:
            RemoteError: It cannot be read.
        """
        for left in reversed(range(_TRIES)):
            try:
                return self.folder.read(self.name)
            except InterruptedTransfer:
                if not left:
                    raise
                time.sleep(_WAIT_S)
        raise AssertionError("one of the tries returns or raises")
