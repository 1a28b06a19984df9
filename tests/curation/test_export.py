"""Every layout, read again, is what was exported: the same images, texts, types and parts."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from PIL import Image as Pictures

from lorax_vlm.curation.export import LAYOUTS, Layout, export_data
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.sources import read_parts
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import PathError, UsageError
from lorax_vlm.skills import answer

CAPTIONS: tuple[Layout, ...] = ("folder", "sidecars", "csv", "parquet", "coco")
QUESTIONS: tuple[Layout, ...] = ("folder", "csv", "parquet", "vqav2")


def content(splits: DataSplits) -> list[tuple[Any, ...]]:
    """All that is in it, whatever files are called."""
    parts = {**splits.parts(), "train": [*splits.train, *splits.shared]}
    return sorted(
        (part, e.image_digest(), e.question, e.target, e.answers, e.kind) for part, some in parts.items() for e in some
    )


def read_again(options: tuple[str, ...]) -> DataSplits:
    """As the options of ``train`` say; parts that are kept apart are put together."""
    read = []
    for line in options:
        words = dict(itertools.batched(line.split(" "), 2)) if hasattr(itertools, "batched") else _pairs(line)
        source = words.pop("--data")
        read.append(read_parts(source, **{name.strip("-"): value for name, value in words.items()}))
    assert len(read) == 1
    return read[0]


def _pairs(line: str) -> dict[str, str]:
    words = line.split(" ")
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "deep").mkdir(parents=True)
    for number, scene in enumerate(iterate_scenes("test", 12)):
        name = f"deep/{number}.png" if number == 3 else f"Bild {number}.jpg" if number == 4 else f"{number}.png"
        scene.image.convert("RGB").save(folder / name, "JPEG" if name.endswith("jpg") else "PNG")
    Pictures.new("RGB", (9, 9), (3, 3, 3)).save(folder / "deep" / "0.png")
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> DataSplits:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_parts(folder)


def names(folder: Path) -> Iterator[str]:
    return (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.[jp]*g")))


@pytest.fixture
def captions(images: Path) -> DataSplits:
    return write(images, [{"file_name": n, "caption": f'line one, "{n}";\nÜber {n}'} for n in names(images)])


@pytest.fixture
def questions(images: Path) -> DataSplits:
    rows = [
        {"file_name": n, "question": f"what, is {k}?", "answer": a, "type": "kind" if k else "other"}
        for n in names(images)
        for k, a in enumerate(("yes", "two"))
    ]
    return write(images, rows)


@pytest.mark.parametrize("layout", CAPTIONS)
def test_captions_there_and_back(layout: Layout, captions: DataSplits, tmp_path: Path) -> None:
    done = export_data(captions, tmp_path / "out", layout)
    assert (done.rows, done.images) == (13, 13)
    again = read_again(done.read_by)
    expected = content(captions)
    assert content(again) == expected
    for other in CAPTIONS:  # and on to every other one
        assert content(read_again(export_data(again, tmp_path / other, other).read_by)) == expected


@pytest.mark.parametrize("layout", QUESTIONS)
def test_questions_there_and_back(layout: Layout, questions: DataSplits, tmp_path: Path) -> None:
    done = export_data(questions, tmp_path / "out", layout)
    assert (done.rows, done.images) == (26, 13)
    again = read_again(done.read_by)
    expected = content(questions)
    assert content(again) == expected
    for other in QUESTIONS:
        assert content(read_again(export_data(again, tmp_path / other, other).read_by)) == expected


@pytest.mark.parametrize("layout", ["folder", "parquet", "vqav2"])
def test_all_annotators_are_kept(layout: Layout, images: Path, tmp_path: Path) -> None:
    rows = [
        {"file_name": n, "question": "what?", "answers": ["a", "b", "b", str(k)]} for k, n in enumerate(names(images))
    ]
    splits = write(images, rows)
    assert content(read_again(export_data(splits, tmp_path / "out", layout).read_by)) == content(splits)
    with pytest.raises(UsageError, match="A cell of CSV holds one answer"):
        export_data(splits, tmp_path / "csv", "csv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_that_the_data_bring_along_stay(layout: Layout, images: Path, tmp_path: Path) -> None:
    parts = itertools.cycle(["train", "train", "validation", "test"])
    text = {"question": "what?", "answer": "that"} if layout == "vqav2" else {"caption": "a thing"}
    splits = write(
        images, [{"file_name": n, "split": part, **text} for n, part in zip(names(images), parts, strict=False)]
    )
    done = export_data(splits, tmp_path / "out", layout)
    if layout in ("coco", "vqav2"):  # a file for each part
        read = [read_again((line,)) for line in done.read_by]
        assert [sorted(row[1:] for row in content(one)) for one in read] == [
            sorted(row[1:] for row in content(splits) if row[0] == part) for part in ("train", "validation", "test")
        ]
    else:
        assert content(read_again(done.read_by)) == content(splits)


def test_images_in_tables_and_drawn_ones_become_files(tmp_path: Path) -> None:
    scenes = [scene.image for scene in iterate_scenes("test", 4)]
    rows = Dataset.from_dict({"image": scenes, "caption": ["a", "b", "c", "d"]}).cast_column("image", Image())
    rows.to_parquet(tmp_path / "rows.parquet")
    splits = read_parts(tmp_path / "rows.parquet")
    again = read_again(export_data(splits, tmp_path / "out", "folder").read_by)
    assert content(again) == content(splits)
    drawn = skill_splits(answer("counting"), 2, 2)
    done = export_data(drawn, tmp_path / "drawn", "vqav2")
    assert (done.images, done.rows) == (4, sum(map(len, (drawn.train, drawn.validation))))  # type: ignore[arg-type]
    assert len(done.read_by) == 2


def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_left(
    captions: DataSplits, questions: DataSplits, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    twice = write(images, [{"file_name": "1.png", "caption": text} for text in ("a", "b")])
    for splits, layout, what in (
        (captions, "vqav2", "vqav2 holds questions"),
        (questions, "coco", "coco holds captions"),
        (questions, "sidecars", "sidecars holds captions"),
        (twice, "sidecars", "A text file holds one caption"),
        (captions, "yolo", "A layout is one of"),
    ):
        with pytest.raises(UsageError, match=what):
            export_data(splits, out, layout)  # type: ignore[arg-type]
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(PathError, match="is not empty"):
        export_data(twice, out, "coco")


@pytest.mark.parametrize("layout", ["folder", "sidecars", "csv", "parquet"])
@pytest.mark.parametrize("parts", [("train", "train", "test"), ("test",)])
def test_parts_without_a_validation_part_stay(
    layout: Layout, parts: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    cycle = itertools.cycle(parts)
    splits = write(images, [{"file_name": n, "split": next(cycle), "caption": f"of {n}"} for n in names(images)])
    assert content(read_again(export_data(splits, tmp_path / "out", layout).read_by)) == content(splits)


@pytest.mark.parametrize("layout", ["folder", "csv", "parquet"])
def test_groups_and_shares_are_part_of_how_data_are_read(layout: Layout, images: Path, tmp_path: Path) -> None:
    rows = [{"file_name": n, "caption": f"of {n}", "clip": f"clip {k // 2}"} for k, n in enumerate(names(images))]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = read_parts(images, group_by="clip", held_out=0.4)
    done = export_data(splits, tmp_path / "out", layout)
    assert done.read_by[0].endswith(" --held-out 0.4 --group-by group")
    again = read_parts(done.read_by[0].split()[1], group_by="group", held_out=0.4)
    assert content(again) == content(splits)
    with pytest.raises(UsageError, match="coco has no place for groups"):
        export_data(splits, tmp_path / "coco", "coco")


def test_names_that_readers_of_folders_pass_over_are_changed(images: Path, tmp_path: Path) -> None:
    (images / "0.png").rename(images / "0.jfif")
    (images / "1.png").rename(images / ".hidden.png")
    rows = [{"file_name": n, "caption": f"of {n}"} for n in ("0.jfif", ".hidden.png", "2.png")]
    splits = write(images, rows)
    for layout in ("sidecars", "folder"):
        done = export_data(splits, tmp_path / layout, layout)  # type: ignore[arg-type]
        assert [row[1:] for row in content(read_again(done.read_by))] == [row[1:] for row in content(splits)]
