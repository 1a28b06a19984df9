"""From what a row says of its image to a file: tables of names and numbers, and what leads nowhere."""

import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.readers.image_files import ImageFiles
from lorax_vlm.errors import MalformedRow
from tests.data_for_tests import write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    write_pictures(
        root, ["a.png", "sub/b.png", "sub dir/c #1 %20.png", ".hidden.png", "[x].png", "D.PNG", "emoji\U0001f600.png"]
    )
    write_pictures(tmp_path, ["private.png", "photos2/e.png"], first=90)
    return root


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("sub/../a.png", "a.png"),
        ("sub//b.png", "sub/b.png"),
        ("sub\\b.png", "sub/b.png"),
        (".\\sub\\b.png", "sub/b.png"),
        ("sub dir/c #1 %20.png", "sub dir/c #1 %20.png"),
        (".hidden.png", ".hidden.png"),
        ("[x].png", "[x].png"),
        ("D.PNG", "D.PNG"),
        ("emoji\U0001f600.png", "emoji\U0001f600.png"),
    ],
)
def test_names_of_files(folder: Path, name: str, expected: str) -> None:
    assert ImageFiles(folder).named(name) == folder / expected


def test_absolute_names_inside_by_any_way_to_the_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(folder)
    for root in (folder, tmp_path / "way"):
        for name in (folder / "a.png", root / "a.png"):
            assert ImageFiles(root).named(str(name)).read_bytes() == (folder / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../private.png", "leads out of the folder"),
        ("sub/../../private.png", "leads out of the folder"),
        ("..\\private.png", "leads out of the folder"),
        ("sub\\..\\..\\private.png", "leads out of the folder"),
        ("../photos2/e.png", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
        (".", "leads out of the folder"),
        ("C:\\photos\\a.png", "Windows machine"),
        ("C:/photos/a.png", "Windows machine"),
        ("\\\\server\\a.png", "Windows machine"),
        ("http://127.0.0.1:9/a.png", "is an address"),
        ("file:///etc/passwd", "is an address"),
        ("data:image/png;base64," + "A" * 9000, "data URI"),
        ("a" * 300 + ".png", "too long"),
        ("a/" * 3000, "too long"),
        ("a\0.png", "null character"),
        ("\ud800.png", "half of a character"),
        ("", "expected the name of a file"),
        (None, "expected the name of a file"),
        (5, "is 5, expected the name of a file"),
        (["a.png"], "expected the name of a file"),
        ("sub", "is a folder"),
        ("a.png/b.png", "does not exist"),
        ("gone.png", "'gone.png' does not exist"),
        ("A.png", "does not exist; there is 'a.png'"),
        ("d.png", "does not exist; there is 'D.PNG'"),
        ("gone\\b.png", "it has backslashes"),
        ("~/a.png", "does not exist"),
    ],
)
def test_names_of_no_file(folder: Path, name: Any, reason: str) -> None:
    with pytest.raises(MalformedRow) as caught:
        ImageFiles(folder).named(name)
    assert reason in caught.value.reason
    assert len(caught.value.reason) < 250


def test_backslashes_are_counted(folder: Path) -> None:
    files = ImageFiles(folder)
    files.named("sub\\b.png")
    files.named("a.png")
    assert dict(files.notes) == {"paths with backslashes, read as /": 1}


def test_a_file_that_has_a_backslash_in_its_name(folder: Path) -> None:
    write_pictures(folder, ["sub\\b.png"], first=50)
    files = ImageFiles(folder)
    assert files.named("sub\\b.png").name == "sub\\b.png"
    assert not files.notes


@pytest.mark.parametrize(("on_disk", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_put_together_in_another_way(tmp_path: Path, on_disk: Any, asked: Any) -> None:
    name = "caf\u00e9/\u00fcber.png"
    write_pictures(tmp_path, [unicodedata.normalize(on_disk, name)])
    found = ImageFiles(tmp_path).named(unicodedata.normalize(asked, name))
    assert found == tmp_path / unicodedata.normalize(on_disk, name)


def test_two_files_that_differ_by_that_only(tmp_path: Path) -> None:
    # three ways to write one letter: two are on disk and the third is asked for
    write_pictures(tmp_path, ["\u212b.png", "A\u030a.png"])
    assert ImageFiles(tmp_path).named("A\u030a.png").name == "A\u030a.png"
    with pytest.raises(MalformedRow, match="may be 2 files"):
        ImageFiles(tmp_path).named("\u00c5.png")


def test_links_of_a_folder_s_owner(folder: Path, tmp_path: Path) -> None:
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "linked").symlink_to(tmp_path / "photos2")
    assert ImageFiles(folder).named("link.png").read_bytes() == (tmp_path / "private.png").read_bytes()
    assert ImageFiles(folder).named("linked/e.png").is_file()
    for name in ("link.png", "linked/e.png"):
        with pytest.raises(MalformedRow, match="leads out of the folder"):
            ImageFiles(folder, links_out=False).named(name)
    (folder / "inside.png").symlink_to("sub/b.png")
    assert ImageFiles(folder, links_out=False).named("inside.png").is_file()


@pytest.mark.parametrize(
    ("target", "reason"), [("loop", "not readable"), ("gone.png", "leads nowhere"), ("/dev/zero", "no regular file")]
)
def test_links_that_lead_to_no_file(folder: Path, target: str, reason: str) -> None:
    (folder / "loop").symlink_to(target)
    with pytest.raises(MalformedRow, match=reason):
        ImageFiles(folder).named("loop")


def test_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(MalformedRow, match="no regular file"):
        ImageFiles(folder).named("pipe.png")


@pytest.mark.parametrize(
    ("names", "number", "expected"),
    [
        (["7.jpg"], 7, "7.jpg"),
        (["7.jpg"], "7", "7.jpg"),
        (["7.jpg"], 7.0, "7.jpg"),
        (["000000000007.tif"], 7, "000000000007.tif"),
        (["000000000007.JPG"], "7", "000000000007.JPG"),
        (["COCO_val2014_000000000007.jpg", "holiday 7.jpg"], 7, "COCO_val2014_000000000007.jpg"),
        (["COCO_val2014_000000000007.jpg", "7.jpg"], 7, "COCO_val2014_000000000007.jpg"),
        (["COCO_val2014_000000000007.jpg"], "COCO_val2014_000000000007", "COCO_val2014_000000000007.jpg"),
        (["COCO_val2014_000000000007.jpg"], "COCO_val2014_000000000007.jpg", "COCO_val2014_000000000007.jpg"),
        (["7.jpg", "thumb_007.jpg"], 7, "7.jpg"),
        (
            ["train2014/COCO_train2014_000000000007.jpg", "val2014/COCO_val2014_000000000008.jpg"],
            8,
            "val2014/COCO_val2014_000000000008.jpg",
        ),
        (["abstract_v002_train2015_000000000007.png"], 7, "abstract_v002_train2015_000000000007.png"),
        (["n161313.jpg", "n161314.jpg"], "n161313", "n161313.jpg"),
        (["0000599864fd15b3.jpg"], "0000599864fd15b3", "0000599864fd15b3.jpg"),
        (["7.jpg", "small/7.jpg"], 7, "7.jpg"),
        (["a/7.jpg"], 7, "a/7.jpg"),
        (["cover.jpg", "images/7.jpg"], 7, "images/7.jpg"),
        (["007.jpg", "7.jpg"], "007", "007.jpg"),
        (["._7.jpg", "7.jpg"], 7, "7.jpg"),
    ],
)
def test_ids_of_images(tmp_path: Path, names: list[str], number: Any, expected: str) -> None:
    write_pictures(tmp_path, names)
    assert ImageFiles(tmp_path, sub_folders=True).of_id(number) == tmp_path / expected


@pytest.mark.parametrize(
    ("names", "number", "reason"),
    [
        (["7.jpg"], 8, "no image file for image_id 8"),
        (["7.jpg", "7.png"], 7, "may be 2 files: '7.jpg', '7.png'"),
        (["7.jpg", "007.jpg"], 7, "may be 2 files"),
        (["train2014/7.jpg", "val2014/7.jpg"], 7, "may be 2 files"),
        (["IMG_007.jpg", "thumb_008.jpg"], 8, "named in several ways"),
        (["cover.jpg", "small/7.jpg"], 7, "no image file"),
        (["7.jpg"], True, "is no id"),
        (["7.jpg"], None, "is no id"),
        (["7.jpg"], [7], "is no id"),
        (["7.jpg"], "9" * 5000, "no image file"),
        (["7.jpg"], "\u0667", "no image file"),
        (["7.jpg"], "../7.jpg", "leads out of the folder"),
        (["7.jpg"], -7, "no image file"),
    ],
)
def test_ids_of_no_image_or_of_two(tmp_path: Path, names: list[str], number: Any, reason: str) -> None:
    root = tmp_path / "images"
    write_pictures(root, names)
    with pytest.raises(MalformedRow) as caught:
        ImageFiles(root, sub_folders=True).of_id(number)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (["val2014/a.jpg"], "a.jpg", "val2014/a.jpg"),
        (["anything/a.jpg"], "a.jpg", "anything/a.jpg"),
        (["a.jpg", "val2014/a.jpg"], "a.jpg", "a.jpg"),
        (["cover.jpg", "val2014/a.jpg"], "a.jpg", "val2014/a.jpg"),
        (["a.jpg"], "images/a.jpg", "a.jpg"),
        (["val2014/a.jpg"], "val2014/a.jpg", "val2014/a.jpg"),
    ],
)
def test_names_in_sub_folders(tmp_path: Path, names: list[str], asked: str, expected: str) -> None:
    root = tmp_path / "images"
    write_pictures(root, names)
    assert ImageFiles(root, sub_folders=True).named(asked) == root / expected


@pytest.mark.parametrize(
    ("names", "asked", "reason"),
    [
        (["train/a.jpg", "val/a.jpg"], "a.jpg", "may be 2 files"),
        (["cover.jpg", "small/a.jpg"], "a.jpg", "does not exist"),
        (["a.jpg"], "other/a.jpg", "does not exist"),
    ],
)
def test_names_that_are_not_guessed(tmp_path: Path, names: list[str], asked: str, reason: str) -> None:
    root = tmp_path / "images"
    write_pictures(root, names)
    with pytest.raises(MalformedRow) as caught:
        ImageFiles(root, sub_folders=True).named(asked)
    assert reason in caught.value.reason


def test_sub_folders_are_looked_into_only_on_request(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["train/0.png"])
    with pytest.raises(MalformedRow, match="does not exist"):
        ImageFiles(tmp_path / "train").named("train/0.png")
    with pytest.raises(MalformedRow, match="does not exist"):
        ImageFiles(tmp_path).named("0.png")


@pytest.mark.timeout(30)
def test_names_that_are_missing_in_a_large_folder_take_no_time(tmp_path: Path) -> None:
    """Each is said with what is near it, which is found once for all."""
    for number in range(20_000):
        (tmp_path / f"{number}.PNG").touch()
    files = ImageFiles(tmp_path)
    for number in range(10_000):
        with pytest.raises(MalformedRow, match=f"'{number}.png' does not exist; there is '{number}.PNG'"):
            files.named(f"{number}.png")
