"""One image behind an fsspec address. No torch."""

import hashlib
from dataclasses import dataclass

from lorax_vlm.bulk.journal import Stamp
from lorax_vlm.data.image_limits import DEFAULT_LIMITS
from lorax_vlm.errors import ImageError
from lorax_vlm.sharing.places import RemoteFile, RemoteFolder


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
        """Its encoded image.

        Raises:
            ImageError: It is larger than any image that is read.
            RemoteError: It cannot be read.
        """
        if self.file.size > DEFAULT_LIMITS.max_bytes:
            reason = f"it has {self.file.size:,} bytes, the limit is {DEFAULT_LIMITS.max_bytes:,}."
            raise ImageError(f"{self.folder.url}/{self.name}", reason)
        return self.folder.read(self.name)
