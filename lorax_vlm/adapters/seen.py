"""``exchange.seen``: which images an adapter was trained on, without the images. No torch.

The file is a line that names its format, then sections until its end. A section is 16 bytes of salt, the number of
values as 8 bytes, and the values: 8 bytes each, ascending, none twice; all numbers with their highest byte first. A
value is the first 8 bytes of ``SHA-256(salt + D)``, where ``D`` is the SHA-256 of an image file's bytes. The salt of a
training is the first 16 bytes of the SHA-256 of all its ``D`` in ascending order, so the same images give the same
file. What is made of several adapters carries their sections unchanged.

Whoever has an image can ask whether it was among them; nobody can get an image, or the number of a missing one, out of
it. Of a billion other images asked about a million, fewer than one is taken for seen.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lorax_vlm.adapters.manifest import FileRecord, Manifest
from lorax_vlm.adapters.regular_files import read_regular
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.paths import naming

SEEN_FILE = "exchange.seen"
MAX_SEEN_BYTES = 128 * 1024**2
"""Some 16 million images."""
MAX_SECTIONS = 1024
_MAGIC = b"lorax-vlm seen images 1\n"
_SALT_BYTES, _COUNT_BYTES, _VALUE_BYTES = 16, 8, 8
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Section:
    """The images of one training."""

    salt: bytes
    values: bytes
    """8 bytes each, ascending."""

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.values) // _VALUE_BYTES

    @cached_property
    def numbers(self) -> np.ndarray:
        """The values as numbers, ascending."""
        return np.frombuffer(self.values, ">u8").astype(np.uint64)

    def contains(self, image: bytes) -> bool:
        """Whether an image is among them, by its SHA-256."""
        value = np.uint64(int.from_bytes(_salted(self.salt, image), "big"))
        place = int(np.searchsorted(self.numbers, value))
        return place < self.count and bool(self.numbers[place] == value)


@dataclass(frozen=True)
class SeenImages:
    """The images that an adapter was trained on; no sections for one that needed no images."""

    sections: tuple[Section, ...] = ()

    @classmethod
    def of(cls, digests: Iterable[str]) -> "SeenImages":
        """Those of one training.

        Args:
            digests: SHA-256 of the images' bytes, in hexadecimal; order and repetition do not matter.

        Raises:
            ValueError: One is no SHA-256.
        """
        images = sorted({_parse(digest) for digest in digests})
        if not images:
            return cls()
        salt = hashlib.sha256(b"".join(images)).digest()[:_SALT_BYTES]
        values = sorted({_salted(salt, image) for image in images})
        return cls((Section(salt, b"".join(values)),))

    @classmethod
    def from_bytes(cls, data: bytes) -> "SeenImages":
        """Back from ``to_bytes``.

        Raises:
            ValueError: It is not such a file.
        """
        if len(data) > MAX_SEEN_BYTES:
            raise ValueError(f"it has {len(data):,} bytes, the limit is {MAX_SEEN_BYTES:,}")
        if not data.startswith(_MAGIC):
            raise ValueError("it does not begin with the line that names its format")
        sections: list[Section] = []
        place = len(_MAGIC)
        while place < len(data):
            section, place = _read_section(data, place)
            if len(sections) == MAX_SECTIONS or any(section.salt == other.salt for other in sections):
                raise ValueError(f"it has a section twice, or more than {MAX_SECTIONS}")
            sections.append(section)
        return cls(tuple(sections))

    def to_bytes(self) -> bytes:
        """The file's content."""
        parts = [_MAGIC]
        for section in self.sections:
            parts += [section.salt, section.count.to_bytes(_COUNT_BYTES, "big"), section.values]
        return b"".join(parts)

    def contains(self, digest: str) -> bool:
        """Whether an image is among them.

        Args:
            digest: SHA-256 of the image's bytes, in hexadecimal.

        Raises:
            ValueError: It is no SHA-256.
        """
        image = _parse(digest)
        return any(section.contains(image) for section in self.sections)

    @property
    def count(self) -> int:
        """Number of images; one that is in several sections counts in each."""
        return sum(section.count for section in self.sections)

    def __add__(self, other: "SeenImages") -> "SeenImages":
        """The images of both; sections that both have are kept once."""
        joined = {section.salt: section for section in self.sections}
        for section in other.sections:
            mine = joined.get(section.salt)
            joined[section.salt] = section if mine is None or mine == section else _union(mine, section)
        return SeenImages(tuple(joined.values()))


def join_seen(parts: Iterable[SeenImages | None]) -> tuple[SeenImages | None, bool]:
    """What is known of the images of several adapters together, and whether that is all of them.

    Nothing is known where none of them says, or where they fit no file.
    """
    parts = list(parts)
    joined = sum((part for part in parts if part is not None), SeenImages())
    fits = len(joined.sections) <= MAX_SECTIONS and len(joined.to_bytes()) <= MAX_SEEN_BYTES
    complete = all(part is not None for part in parts)
    return (joined, complete) if fits and (complete or joined.sections) else (None, False)


def write_seen(folder: Path, seen: SeenImages | None) -> None:
    """Put what an adapter was trained on beside its weights; for None, that it is not known, nothing.

    Raises:
        PathError: The file cannot be written.
    """
    with naming(folder):
        (folder / SEEN_FILE).unlink(missing_ok=True)
        if seen is not None:
            (folder / SEEN_FILE).write_bytes(seen.to_bytes())


def read_seen(folder: Path, manifest: Manifest) -> SeenImages | None:
    """The images that the adapter in a folder was trained on; None when it does not say.

    Args:
        folder: Of the adapter.
        manifest: Of the adapter; a file that it does not name says nothing.

    Raises:
        DamagedAdapter: The file is not the one that the manifest names, or no such file.
    """
    record = manifest.files.get(SEEN_FILE)
    if record is None:
        return None
    try:
        data = read_regular(folder / SEEN_FILE, MAX_SEEN_BYTES)
        if FileRecord.of(data) != record:
            raise ValueError("was changed")
        return SeenImages.from_bytes(data)
    except FileNotFoundError:
        raise DamagedAdapter(manifest.name, str(folder), [f"{SEEN_FILE} does not exist"]) from None
    except (ValueError, OSError) as error:
        raise DamagedAdapter(manifest.name, str(folder), [f"{SEEN_FILE}: {error}"]) from error


def _parse(digest: str) -> bytes:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ValueError("an image is named by the 64 hexadecimal digits of its SHA-256")
    return bytes.fromhex(digest)


def _salted(salt: bytes, image: bytes) -> bytes:
    return hashlib.sha256(salt + image).digest()[:_VALUE_BYTES]


def _read_section(data: bytes, place: int) -> tuple[Section, int]:
    """The section that begins at a byte, and the byte behind it."""
    begin = place + _SALT_BYTES + _COUNT_BYTES
    count = int.from_bytes(data[place + _SALT_BYTES : begin], "big")
    if begin > len(data) or not 1 <= count <= (len(data) - begin) // _VALUE_BYTES:
        raise ValueError(f"the section at byte {place:,} is cut off or empty")
    end = begin + count * _VALUE_BYTES
    section = Section(data[place : place + _SALT_BYTES], data[begin:end])
    if not (section.numbers[:-1] < section.numbers[1:]).all():
        raise ValueError(f"the values of the section at byte {place:,} do not ascend")
    return section, end


def _union(one: Section, other: Section) -> Section:
    both = np.union1d(one.numbers, other.numbers)
    return Section(one.salt, both.astype(">u8").tobytes())
