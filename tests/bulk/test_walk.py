"""Which images a folder has, in which order, and that no two write one text."""

import os
from pathlib import Path

import pytest

from lorax_vlm.bulk.folder import ImageFolder
from lorax_vlm.bulk.wording import Wording, marks
from lorax_vlm.data.readers.listing import text_stems
from lorax_vlm.errors import PathError, UsageError


def names(folder: ImageFolder) -> list[str]:
    return [item.name for item in folder]


def test_images_come_in_natural_order_without_what_systems_leave_behind(tmp_path: Path) -> None:
    for name in ("b10.jpg", "b9.JPG", "a.png", ".DS_Store", "._a.png", "notes.txt", "clip.mp4", "a.TIFF", "x.webp"):
        (tmp_path / name).touch()
    for sub in ("__MACOSX", "@eaDir", "set2", "set10"):
        (tmp_path / sub).mkdir()
        (tmp_path / sub / "in.png").touch()
    assert names(ImageFolder(tmp_path)) == ["a.png", "a.TIFF", "b9.JPG", "b10.jpg", "x.webp"]
    assert names(ImageFolder(tmp_path, recursive=True))[5:] == ["set2/in.png", "set10/in.png"]


def test_links_are_followed_to_files_and_to_folders_on_request(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "far.png").touch()
    (own / "near.png").symlink_to(other / "far.png")
    (own / "gone.png").symlink_to(other / "nothing.png")
    (own / "sub").symlink_to(other)
    (other / "round").symlink_to(own)
    (own / "folder.png").mkdir()
    os.mkfifo(own / "pipe.png")
    assert names(ImageFolder(own, recursive=True)) == ["gone.png", "near.png"]
    assert names(ImageFolder(own, recursive=True, follow_links=True)) == ["gone.png", "near.png", "sub/far.png"]


@pytest.mark.parametrize(
    "files",
    [
        ["a.jpg", "b.jpg"],
        ["a.jpg", "a.png"],
        ["a.jpg", "a.png", "a.jpg.gif", "a.jpg.gif.bmp"],
        ["A.jpg", "a.jpg", "a.JPG", "a.jpg.509b0d46.png"],
        ["é.png", "e\u0301.png"],
        ["ß.png", "SS.png", "ss.png"],
    ],
)
def test_no_two_texts_have_one_name(files: list[str]) -> None:
    stems = text_stems(files)
    assert len({stem.casefold() for stem in stems}) == len(files)
    assert text_stems(files) == stems
    assert dict(zip(reversed(files), text_stems(files[::-1]), strict=True)) == dict(zip(files, stems, strict=True))


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (tmp_path / odd).touch()
    [item] = ImageFolder(tmp_path)
    assert item.read() == b""
    assert os.fsencode(item.stem) == b"caf\xe9"


def test_a_folder_without_images_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(PathError, match="no such folder"):
        ImageFolder(tmp_path / "none").require_images()
    (tmp_path / "sub").mkdir()
    with pytest.raises(PathError, match=r"it holds no images\.$"):
        ImageFolder(tmp_path).require_images()
    (tmp_path / "sub" / "a.png").touch()
    with pytest.raises(PathError, match="--recursive"):
        ImageFolder(tmp_path).require_images()


def test_templates_have_known_fields_only() -> None:
    about = {"folder": "f", "name": "n", "adapter": "a"}
    assert (
        Wording("p ", " s", "{name}: {prefix}{caption}{suffix} {{}}").text("{caption} c", about)
        == "n: p {caption} c s {}"
    )
    for template in ("{caption.__class__}", "{caption!r}", "{caption:>9}", "{other}", "{", "no caption"):
        with pytest.raises(UsageError, match="The template"):
            Wording(template=template)


def test_what_speaks_against_a_text() -> None:
    assert marks("", "empty") == ("empty",)
    assert marks("a cat and a dog and a", "length") == ("cut off",)
    assert marks("the red the red the red", "eos") == ("repeats",)
    assert marks("very very big", "eos") == ()
