"""One image of each that is there twice, and nothing that was said is lost."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.curation.dedupe import dedupe
from lorax_vlm.curation.export import export_data
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.sources import read_parts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    rows = []
    for number, scene in enumerate(iterate_scenes("test", 20)):
        scene.image.save(folder / f"{number}.png")
        rows.append(
            {"file_name": f"{number}.png", "caption": f"scene {number}", "split": "train" if number else "test"}
        )
    shutil.copy(folder / "2.png", folder / "two.png")
    Image.open(folder / "3.png").convert("RGB").resize((112, 112)).save(folder / "small.jpg")
    Image.open(folder / "0.png").convert("RGB").resize((448, 448)).save(folder / "large.png")
    for name, caption in (("two.png", "scene 2"), ("two.png", "two"), ("small.jpg", "three"), ("large.png", "nought")):
        rows.append({"file_name": name, "caption": caption, "split": "train"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def said(folder: Path, **options: bool) -> dict[str, list[str]]:
    """The captions of each image by part, the image called after its file."""
    found = dedupe(read_parts(folder), **options).splits
    by_image: dict[str, list[str]] = {}
    for part, examples in found.parts().items():
        for example in examples:
            assert isinstance(example.image, Path)
            by_image.setdefault(f"{part}: {example.image.name}", []).append(example.target)
    return by_image


def test_the_largest_image_stays_with_all_that_was_said(folder: Path) -> None:
    found = said(folder, near=True)
    assert found["train: 2.png"] == ["scene 2", "two"]
    assert found["train: 3.png"] == ["scene 3", "three"]
    assert sorted(found["train: large.png"]) == ["nought", "scene 0"], "in the part where the image is that stays"
    assert len(found) == 20
    result = dedupe(read_parts(folder), near=True)
    assert (len(result.groups), result.repeated) == (2, 1)
    assert result.lines()[0] == "2 images in several versions, of which the largest stays:"


def test_of_equally_large_images_the_one_that_was_not_compressed_again_stays(folder: Path) -> None:
    """Whatever they are called: the copy comes first by its name."""
    Image.open(folder / "5.png").convert("RGB").save(folder / "1 again.jpg", quality=60)
    rows = (folder / "metadata.jsonl").read_text()
    again = json.dumps({"file_name": "1 again.jpg", "caption": "five", "split": "train"})
    (folder / "metadata.jsonl").write_text(f"{again}\n{rows}")
    found = said(folder, near=True)
    assert sorted(found["train: 5.png"]) == ["five", "scene 5"]


def test_without_near_ones_only_equal_images_are_one(folder: Path) -> None:
    found = said(folder)
    assert found["train: 2.png"] == ["scene 2", "two"]
    assert {"train: 3.png", "train: small.jpg", "test: 0.png", "train: large.png"} <= set(found)


def test_what_is_written_has_nothing_twice(folder: Path, tmp_path: Path) -> None:
    export_data(dedupe(read_parts(folder), near=True).splits, tmp_path / "out", "folder")
    assert len(list((tmp_path / "out").glob("*.*g"))) == 20
    again = dedupe(read_parts(tmp_path / "out"), near=True)
    assert (again.groups, again.repeated, again.lines()) == ((), 0, ["nothing is there twice"])
