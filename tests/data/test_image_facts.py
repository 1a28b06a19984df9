"""Every image is looked at once before the run, with the functions of the run, and none is kept."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data import image_facts
from lorax_vlm.data.image_facts import RowImage, examine
from lorax_vlm.data.sources import read_data
from tests.data_for_tests import captioned, numbered, png, write_pictures, write_rows


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that are decoded; nothing is known from other tests."""
    sizes: list[int] = []
    decode = image_facts.decode_image

    def watched(data: bytes, name: str) -> Image.Image:
        sizes.append(len(data))
        return decode(data, name)

    monkeypatch.setattr(image_facts, "decode_image", watched)
    monkeypatch.setattr(image_facts, "_digests", {})
    monkeypatch.setattr(image_facts, "_readable", {})
    return sizes


def old(folder: Path) -> Path:
    """The folder, its files unchanged for a while."""
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 100, time.time() - 100))
    return folder


def test_rows_that_share_images_share_the_work(tmp_path: Path, decoded: list[int]) -> None:
    write_pictures(tmp_path, numbered(5))
    write_pictures(tmp_path, ["copy.png"])  # of 0.png
    write_rows(
        tmp_path, [row | {"caption": f"c{n}"} for n in range(100) for row in captioned([*numbered(5), "copy.png"])]
    )
    splits = read_data(tmp_path)
    assert len(splits.train) + len(splits.validation) == 600
    assert len(decoded) == 5


def test_what_was_found_is_remembered_until_the_file_changes(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_facts, "_SETTLED_NS", -(10**18))
    write_pictures(tmp_path, numbered(4))
    write_rows(tmp_path, captioned(numbered(4)))
    before = read_data(tmp_path)
    assert read_data(tmp_path) == before
    assert len(decoded) == 4
    (tmp_path / "2.png").write_bytes(png(99))
    assert read_data(tmp_path).identity() != before.identity()
    assert len(decoded) == 5


def test_a_file_that_has_just_been_written_is_not_taken_for_known(tmp_path: Path, decoded: list[int]) -> None:
    """Within a clock's tick a file may change and keep size and time."""
    path = tmp_path / "0.png"
    for number in range(40):
        path.write_bytes(png(number))
        assert examine([path])[0].digest == hashlib.sha256(png(number)).hexdigest()


def test_facts_of_all_kinds_of_images(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["0.png"])
    (tmp_path / "cut.png").write_bytes(png(1)[:40])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    rows = [{"image": png(0)}, {"image": {"bytes": png(5), "path": None}}]
    images = [
        *(tmp_path / name for name in ("0.png", "cut.png", "pipe.png", "zero.png", "folder.png", "gone.png")),
        *(png(0), b"", RowImage(rows, 0, "image"), RowImage(rows, 1, "image")),
    ]
    facts = examine(images)
    assert [fact.problem is None for fact in facts] == [True, *[False] * 5, True, False, True, True]
    assert len({facts[n].digest for n in (0, 6, 8)}) == 1
    assert facts[9].digest == hashlib.sha256(png(5)).hexdigest()
    assert "no ordinary file" in str(facts[2].problem) + str(facts[3].problem)
    assert examine([]) == []


def test_files_larger_than_the_limit_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**40)
    assert "the limit is 134,217,728" in str(examine([tmp_path / "large.png"])[0].problem)


def test_progress_is_told(tmp_path: Path) -> None:
    write_pictures(tmp_path, numbered(7))
    write_rows(tmp_path, captioned(numbered(7) * 3))
    told: list[tuple[int, int]] = []
    read_data(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 7) for n in range(1, 8)]


_READ = """
import resource, sys
from lorax_vlm.data.sources import read_data
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
splits = read_data(sys.argv[1])
for example in splits.train: example.open_image()
print(len(splits.train) + len(splits.validation), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_photographs_are_let_go(tmp_path: Path) -> None:
    """Twenty photographs of 12 megapixels have 720 MB of pixels; a few of them are in work at a time."""
    photograph = Image.effect_noise((1000, 750), 90).convert("RGB").resize((4000, 3000))
    for number in range(20):
        photograph.save(tmp_path / f"{number}.jpg", quality=30, comment=str(number))
    write_rows(tmp_path, captioned(f"{n}.jpg" for n in range(20)))
    done = subprocess.run([sys.executable, "-c", _READ, str(tmp_path)], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, done.stdout.split())
    assert count == 20
    assert grown_kib < 400 * 1024


def test_images_of_rows_are_equal_by_content() -> None:
    rows = [{"image": png(0)}, {"image": png(0)}, {"image": png(1)}]
    one, same, other = (
        RowImage(rows, n, "image").identified(hashlib.sha256(rows[n]["image"]).hexdigest()) for n in range(3)
    )
    assert one == same != other
    assert len({one, same, other}) == 2
    unknown = RowImage(rows, 0, "image")
    assert unknown == RowImage(rows, 0, "image") != RowImage(rows, 1, "image")
    assert unknown != "something else"
    known = unknown.identified(one.digest)
    for first in (one, same, other, unknown, known):
        for second in (one, same, other, unknown, known):
            assert first != second or hash(first) == hash(second)
    assert one == known
    assert one().size == (6, 5)


def test_what_is_remembered_may_be_forgotten_at_any_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As by another thread that reads the image after so many others."""

    class Forgetful(dict[str, str | None]):
        def __setitem__(self, key: str, value: str | None) -> None:
            self.clear()

        def __contains__(self, key: object) -> bool:
            return True  # a moment ago

    monkeypatch.setattr(image_facts, "_readable", Forgetful())
    (tmp_path / "0.png").write_bytes(png(0))
    os.utime(tmp_path / "0.png", (0, 0))
    for _ in range(2):
        [found] = examine([tmp_path / "0.png"])
        assert found.problem is None
        assert examine([b"none"])[0].problem is not None
