"""Which images an adapter has seen: worked out with hashlib, strict about its file, carried through a store."""

import dataclasses
import hashlib
import random
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.seen import MAX_SECTIONS, SEEN_FILE, SeenImages, read_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import DamagedAdapter
from lorax_vlm.skills import caption

MAGIC = b"lorax-vlm seen images 1\n"
MANIFEST = Manifest(name="one", skill=caption("concise"), base=None, trained=True)


def image(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def by_hand(numbers: list[int]) -> bytes:
    """The file, as its description says, with nothing but hashlib and struct."""
    images = sorted(bytes.fromhex(image(number)) for number in set(numbers))
    salt = hashlib.sha256(b"".join(images)).digest()[:16]
    values = sorted(struct.unpack(">Q", hashlib.sha256(salt + one).digest()[:8])[0] for one in images)
    return MAGIC + salt + struct.pack(">Q", len(values)) + b"".join(struct.pack(">Q", value) for value in values)


def test_the_file_is_as_described_and_does_not_depend_on_order_or_repetition() -> None:
    numbers = list(range(50))
    mixed = numbers + numbers[:7]
    random.Random(1).shuffle(mixed)
    assert SeenImages.of(map(image, numbers)).to_bytes() == by_hand(numbers)
    assert SeenImages.of(map(image, mixed)).to_bytes() == by_hand(numbers)
    assert SeenImages.of([]).to_bytes() == MAGIC


def test_all_of_them_are_known_and_no_others() -> None:
    seen = SeenImages.from_bytes(SeenImages.of(map(image, range(500))).to_bytes())
    assert seen.count == 500
    assert all(seen.contains(image(number)) for number in range(500))
    assert not any(seen.contains(image(number)) for number in range(500, 5000))
    assert not SeenImages().contains(image(1))


def test_sums_keep_the_sections_and_none_twice() -> None:
    one, other = SeenImages.of(map(image, range(10))), SeenImages.of(map(image, range(5, 20)))
    both = one + other
    assert both.sections == (*one.sections, *other.sections)
    assert both + one == both
    assert (both.count, (one + SeenImages()).count) == (25, 10)
    assert all(both.contains(image(number)) for number in range(20))
    assert SeenImages.from_bytes(both.to_bytes()) == both


def test_values_of_one_salt_from_two_files_are_joined() -> None:
    salt = bytes(16)
    sections = [
        MAGIC + salt + struct.pack(">Q", len(values)) + b"".join(struct.pack(">Q", value) for value in values)
        for values in ([1, 2**63, 2**64 - 1], [1, 5])
    ]
    both = SeenImages.from_bytes(sections[0]) + SeenImages.from_bytes(sections[1])
    assert [int(number) for number in both.sections[0].numbers] == [1, 5, 2**63, 2**64 - 1]
    assert SeenImages.from_bytes(both.to_bytes()) == both


SECTION = bytes(16) + struct.pack(">QQQ", 2, 1, 2)
WRONG = {
    "empty": b"",
    "another line": b"lorax-vlm seen images 2\n",
    "half a salt": MAGIC + bytes(9),
    "no values": MAGIC + bytes(16) + struct.pack(">Q", 0),
    "fewer values than said": MAGIC + SECTION[:-8],
    "half a value": MAGIC + SECTION[:-3],
    "bytes behind": MAGIC + SECTION + b"x",
    "a count of 2**64 - 1": MAGIC + bytes(16) + struct.pack(">QQ", 2**64 - 1, 1),
    "values that descend": MAGIC + bytes(16) + struct.pack(">QQQ", 2, 2, 1),
    "a value twice": MAGIC + bytes(16) + struct.pack(">QQQ", 2, 1, 1),
    "a section twice": MAGIC + SECTION + SECTION,
    "too many sections": MAGIC + b"".join(struct.pack(">QQQQ", number, 0, 1, 1) for number in range(MAX_SECTIONS + 1)),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each with words of its own)
        SeenImages.from_bytes(data)


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n", None, 5, b"0" * 64])
def test_an_image_is_named_by_its_sha256(digest: object) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        SeenImages.of([digest])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        SeenImages().contains(digest)  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda data: MAGIC + data))
def test_what_is_taken_is_written_as_it_was(data: bytes) -> None:
    try:
        seen = SeenImages.from_bytes(data)
    except ValueError:
        return
    assert seen.to_bytes() == data


def test_a_store_keeps_it_and_says_when_it_is_not_known(
    store: AdapterStore, adapter_folder: Path, tmp_path: Path
) -> None:
    assert read_seen(store.add("without", adapter_folder, MANIFEST).folder, MANIFEST) is None
    seen = SeenImages.of(map(image, range(9)))
    (adapter_folder / SEEN_FILE).write_bytes(seen.to_bytes())
    stored = store.add("with", adapter_folder, MANIFEST)
    assert SEEN_FILE in stored.manifest.files
    assert read_seen(stored.folder, stored.manifest) == seen
    assert read_seen(stored.folder, MANIFEST) is None, "a manifest that does not name the file says nothing"
    assert store.verify().problems == ()
    assert (store.export("with", tmp_path / "out") / SEEN_FILE).read_bytes() == seen.to_bytes()
    (stored.folder / SEEN_FILE).write_bytes(SeenImages.of([image(77)]).to_bytes())
    for look in (lambda: read_seen(stored.folder, stored.manifest), lambda: store.read("with")[1]):
        with pytest.raises(DamagedAdapter, match=r"exchange\.seen.*was changed"):
            look()
    (stored.folder / SEEN_FILE).unlink()
    with pytest.raises(DamagedAdapter, match=r"exchange\.seen does not exist"):
        read_seen(stored.folder, stored.manifest)


def test_a_file_that_is_none_is_not_stored(store: AdapterStore, adapter_folder: Path) -> None:
    (adapter_folder / SEEN_FILE).write_bytes(b"something else")
    with pytest.raises(DamagedAdapter, match=r"exchange\.seen"):
        store.add("one", adapter_folder, MANIFEST)
    assert store.names() == []


def test_sections_of_one_size_are_told_apart() -> None:
    one = SeenImages.of([image(1)])
    assert dataclasses.replace(one.sections[0], salt=bytes(16)) != one.sections[0]
