"""The one form of a bundle's archive: zip, uncompressed, files one behind the other, and not a byte besides. No torch.

Any zip program reads it. Here it is read from its first byte to its last, every header compared with the one that
would be written, so that nothing can hide before, between or behind the files, and no table of contents is believed.
"""

import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from lorax_vlm.foreign import quoted

ZIP64_LIMIT = 2**31 - 1
_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64, _LOCATOR64 = b"PK\6\6", b"PK\6\7"
_VERSION, _UNIX = 45, 3
_DATE = (1 << 5) | 1
"""1 January 1980, the first day that a zip archive knows."""
_MODE = (stat.S_IFREG | 0o644) << 16
_FULL, _FULL_SHORT = 2**32 - 1, 2**16 - 1
_LOCAL_BYTES, _EXTRA_BYTES = 30, 20
_BLOCK = 2**20


@dataclass(frozen=True)
class Entry:
    """One file of an archive."""

    name: str
    size: int
    checksum: int
    """CRC-32 of its content."""
    begin: int
    """Where its header is."""


def write_archive(out: BinaryIO, files: Iterable[tuple[str, Iterable[bytes]]]) -> None:
    """Write an archive.

    Args:
        out: A new file.
        files: Names, each with its content in blocks.
    """
    entries = []
    for name, blocks in files:
        begin, size, checksum = out.tell(), 0, 0
        out.write(_local_header(name, 0, 0))
        for block in blocks:
            out.write(block)
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        end = out.tell()
        out.seek(begin)
        out.write(_local_header(name, size, checksum))
        out.seek(end)
        entries.append(Entry(name, size, checksum, begin))
    out.write(_table(entries, out.tell()))


def read_archive(source: BinaryIO, limits: Mapping[str, int]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of an archive in their order, each with its content in blocks, which must be read before the next.

    Args:
        source: The archive, at its beginning.
        limits: The names that there may be, in their order, with the most bytes each may have.

    Raises:
        ValueError: It is no such archive; when it is about what comes last, all files have been given.
    """
    entries: list[Entry] = []
    names = list(limits)
    while True:
        begin = source.tell()
        header = source.read(_LOCAL_BYTES)
        if not header.startswith(_LOCAL):
            break
        name, size, checksum = _read_local_header(header, source)
        if name not in names:
            known = "is there twice, or not in its place" if name in limits else "is no file of an adapter"
            raise ValueError(f"{quoted(name)} {known}")
        names = names[names.index(name) + 1 :]
        if size > limits[name]:
            raise ValueError(f"{name} has {size:,} bytes, the limit is {limits[name]:,}")
        entry = Entry(name, size, checksum, begin)
        yield name, _content(source, entry)
        entries.append(entry)
    if not entries:
        raise ValueError("it does not begin with a file of an adapter")
    expected = _table(entries, begin)
    if header + source.read(len(expected)) != expected:
        raise ValueError("it holds more than its files, or they are not listed as pack lists them")


def _content(source: BinaryIO, entry: Entry) -> Iterator[bytes]:
    left, checksum = entry.size, 0
    while left:
        block = source.read(min(_BLOCK, left))
        if not block:
            raise ValueError(f"it is cut off within {entry.name}")
        left, checksum = left - len(block), zlib.crc32(block, checksum)
        yield block
    if checksum != entry.checksum:
        raise ValueError(f"{entry.name} is damaged: its checksum is another one")


def _read_local_header(header: bytes, source: BinaryIO) -> tuple[str, int, int]:
    """Name, size and checksum; whatever else it says must be what ``_local_header`` writes."""
    length = int.from_bytes(header[26:28], "little")
    if len(header) < _LOCAL_BYTES or length > 100:
        raise ValueError("it is cut off, or holds a file with a long name")
    rest = source.read(length + _EXTRA_BYTES)
    name = rest[:length].decode("ascii", "replace")
    size = int.from_bytes(rest[length + 4 : length + 12], "little")
    checksum = int.from_bytes(header[14:18], "little")
    try:
        same = header + rest == _local_header(name, size, checksum)
    except (UnicodeEncodeError, struct.error):
        same = False
    if not same:
        raise ValueError(f"the header of {quoted(name)} is not as pack writes it, as for one that is compressed")
    return name, size, checksum


def _local_header(name: str, size: int, checksum: int) -> bytes:
    """With sizes of 64 bits always, so that its length is known before the content is."""
    text = name.encode("ascii")
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    fields = (_LOCAL, _VERSION, 0, 0, 0, 0, _DATE, checksum, _FULL, _FULL, len(text), len(extra))
    return struct.pack("<4s2B4HL2L2H", *fields) + text + extra


def _table(entries: Sequence[Entry], begin: int) -> bytes:
    """The list of contents that ends an archive."""
    rows = b"".join(map(_row, entries))
    count, size, where = len(entries), len(rows), begin
    long = b""
    if begin > ZIP64_LIMIT or size > ZIP64_LIMIT:
        long = struct.pack("<4sQ2H2L4Q", _END64, 44, _VERSION, _VERSION, 0, 0, count, count, size, begin)
        long += struct.pack("<4sLQL", _LOCATOR64, 0, begin + size, 1)
        count, size, where = min(count, _FULL_SHORT), min(size, _FULL), min(begin, _FULL)
    return rows + long + struct.pack("<4s4H2LH", _END, 0, 0, count, count, size, where, 0)


def _row(entry: Entry) -> bytes:
    text, numbers = entry.name.encode("ascii"), []
    size, begin = entry.size, entry.begin
    if size > ZIP64_LIMIT:
        numbers, size = [size, size], _FULL
    if begin > ZIP64_LIMIT:
        numbers, begin = [*numbers, begin], _FULL
    extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    versions = (_VERSION, _UNIX, _VERSION, 0)
    fields = (0, 0, 0, _DATE, entry.checksum, size, size, len(text), len(extra), 0, 0, 0, _MODE, begin)
    return struct.pack("<4s4B4HL2L5H2L", _CENTRAL, *versions, *fields) + text + extra
