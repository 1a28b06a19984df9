"""What is held out: by content alone, about as much as is asked for, and what belongs together on one side."""

import hashlib
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.sources import read_data
from lorax_vlm.data.splitting import (
    group_digest,
    held_out_images,
    held_out_rank,
    is_held_out,
    part_called,
    part_in_file_name,
    require_share,
)
from lorax_vlm.errors import DataError, UsageError
from tests.data_for_tests import all_examples, captioned, numbered, png, write_json, write_pictures, write_rows


def digests(count: int, seed: object = 0) -> list[str]:
    return [hashlib.sha256(f"{seed} {number}".encode()).hexdigest() for number in range(count)]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("count", [20, 100, 2000])
def test_the_share_is_that_of_a_fair_draw(share: float, count: int) -> None:
    """Over 40 sets the number held out lies within five standard deviations of what is asked, and spreads."""
    found = [len(held_out_images(digests(count, seed), share)) for seed in range(40)]
    deviation = math.sqrt(count * share * (1 - share))
    assert all(
        max(1, count * share - 5 * deviation) <= n <= min(count - 1, count * share + 5 * deviation) for n in found
    )
    expected = count * share + (1 - share) ** count  # where none is drawn, one is held out all the same
    assert abs(sum(found) / 40 - expected) < 4 * deviation / math.sqrt(40) + 0.2


def test_ranks_are_even() -> None:
    """Kolmogorov and Smirnov's distance to the even distribution, at a thousandth of chance."""
    ranks = sorted(held_out_rank(digest) / 2**64 for digest in digests(5000))
    distance = max(abs(rank - (index + 0.5) / 5000) for index, rank in enumerate(ranks))
    assert distance < 1.95 / math.sqrt(5000)


@pytest.mark.parametrize("count", range(2, 12))
@pytest.mark.parametrize("share", [1e-9, 0.1, 0.999999999])
def test_small_sets_have_both_sides(count: int, share: float) -> None:
    for seed in range(20):
        chosen = held_out_images(digests(count, seed), share)
        assert 1 <= len(chosen) < count
    known = digests(count)
    assert held_out_images(known, 1e-9) == {min(known, key=held_out_rank)}
    assert held_out_images(known, 0.999999999) == set(known) - {max(known, key=held_out_rank)}


def test_one_image_is_there_to_measure_with() -> None:
    assert held_out_images(digests(1), 0.1) == set(digests(1))
    assert held_out_images([], 0.1) == set()


def test_order_and_repetition_do_not_matter() -> None:
    known = digests(60)
    chosen = held_out_images(known, 0.2)
    random.Random(1).shuffle(known)
    assert held_out_images(known * 3, 0.2) == chosen == {d for d in known if is_held_out(d, 0.2)}


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, math.nan, math.inf, True, "0.1", None])
def test_what_is_no_share(share: Any) -> None:
    with pytest.raises(UsageError, match="--held-out"):
        require_share(share)


def test_groups_stay_together_and_images_join_them() -> None:
    images, groups = digests(300), [f"clip {number // 3}" for number in range(300)]
    chosen = held_out_images(images, 0.2, groups)
    sides = {
        group: {digest in chosen for digest, g in zip(images, groups, strict=True) if g == group} for group in groups
    }
    assert all(len(side) == 1 for side in sides.values())
    assert 0.1 < len(chosen) / 300 < 0.3
    assert chosen == {d for d, g in zip(images, groups, strict=True) if is_held_out(group_digest(g), 0.2)}
    # a chain: each image is in two groups, so all are one
    chain = [(image, group) for k, image in enumerate(images[:50]) for group in (f"g{k}", f"g{k + 1}")]
    rows, names = zip(*chain, strict=True)
    assert len(held_out_images(rows, 0.5, names)) == 50


def test_a_group_keeps_its_side_when_others_come() -> None:
    images, groups = digests(100), [str(number // 4) for number in range(100)]
    before = held_out_images(images[:60], 0.3, groups[:60])
    after = held_out_images(images, 0.3, groups)
    assert before == after & set(images[:60])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            ("train", "train"),
            ("Training", "train"),
            ("restval", "train"),
            ("val", "validation"),
            ("VALID", "validation"),
        ),
        *(("dev", "validation"), (" validation ", "validation"), ("test", "test"), ("eval", "test"), ("cats", None)),
        *(("", None), ("trainer", None), ("tests", None)),
    ],
)
def test_names_of_parts(name: str, part: str | None) -> None:
    assert part_called(name) == part


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(("train.csv", "train"), ("train-00000-of-00002.parquet", "train"), ("captions_val2017.jsonl", "validation")),
        *(
            ("validation_0.jsonl", "validation"),
            ("test.parquet", "test"),
            ("train.test.csv", None),
            ("captions.csv", None),
        ),
        ("training-data.csv", "train"),
    ],
)
def test_names_of_files_for_parts(name: str, part: str | None) -> None:
    assert part_in_file_name(name) == part


# --- the same images, however they are read ---------------------------------------------------------------------------

COUNT = 60


def held_out_numbers(splits: Any) -> set[str]:
    """The captions of what is held out; each is the number of its picture."""
    assert len(all_examples(splits)) == COUNT
    return {example.target for example in splits.validation}


def ways_to_write(folder: Path) -> dict[str, Any]:
    """One set of pictures in different folders, names, orders and formats; captions are the pictures' numbers."""
    plain, other, coco = folder / "plain", folder / "elsewhere" / "deep", folder / "coco"
    write_pictures(plain, numbered(COUNT))
    write_rows(plain, [{"file_name": f"{n}.png", "caption": f"{n}"} for n in range(COUNT)])
    shuffled = random.Random(0).sample(range(COUNT), COUNT)
    names = {n: f"scene {k}/rgb.png" for k, n in enumerate(shuffled)}
    for number, name in names.items():
        (other / name).parent.mkdir(parents=True)
        (other / name).write_bytes(png(number))
    lines = [f'"{name}",{number}' for number, name in names.items()]
    (other / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    write_pictures(coco / "val2014", [f"{n:012d}.png" for n in range(COUNT)])
    rows = {
        "images": [{"id": n, "file_name": f"{n:012d}.png"} for n in reversed(range(COUNT))],
        "annotations": [{"image_id": n, "caption": f"{n}"} for n in range(COUNT)],
    }
    write_json(coco / "c.json", rows)
    shutil.copytree(plain, folder / "beside")
    (folder / "beside" / "metadata.jsonl").unlink()
    for number in range(COUNT):
        (folder / "beside" / f"{number}.txt").write_text(f" {number}\n")
    return {
        "folder": {"source": plain},
        "file": {"source": plain / "metadata.jsonl"},
        "csv, other names and order": {"source": other},
        "texts beside": {"source": folder / "beside"},
        "coco": {"source": coco / "c.json", "images": coco},
    }


def test_the_same_images_are_held_out_however_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: held_out_numbers(read_data(**way)) for name, way in ways_to_write(tmp_path).items()}
    monkeypatch.chdir(tmp_path)
    found["spelt otherwise"] = held_out_numbers(read_data("./coco/c.json", images="coco/../coco"))
    found["relative"] = held_out_numbers(read_data("plain/"))
    first = found.pop("folder")
    assert 1 <= len(first) <= 15
    assert {name: numbers ^ first for name, numbers in found.items()} == {name: set() for name in found}


def test_vqav2_holds_out_the_same(tmp_path: Path) -> None:
    write_pictures(tmp_path / "im", [f"COCO_val2014_{n:012d}.png" for n in range(COUNT)])
    questions = [{"question_id": n, "image_id": n, "question": f"what is {n}?"} for n in range(COUNT)]
    answers = [{"question_id": n, "multiple_choice_answer": str(n)} for n in range(COUNT)]
    write_json(tmp_path / "q.json", {"questions": questions})
    write_json(tmp_path / "a.json", {"annotations": answers})
    write_pictures(tmp_path / "plain", numbered(COUNT))
    write_rows(tmp_path / "plain", [{"file_name": f"{n}.png", "caption": f"{n}"} for n in range(COUNT)])
    splits = read_data(tmp_path / "q.json", annotations=tmp_path / "a.json", images=tmp_path / "im")
    assert held_out_numbers(splits) == held_out_numbers(read_data(tmp_path / "plain"))


def test_images_equal_byte_for_byte_are_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{copy}/{n}.png" for copy in range(3) for n in range(20)])
    for copy in (1, 2):
        for n in range(20):
            shutil.copy(tmp_path / f"0/{n}.png", tmp_path / f"{copy}/{n}.png")
    write_rows(tmp_path, captioned([f"{copy}/{n}.png" for copy in range(3) for n in range(20)]))
    splits = read_data(tmp_path, held_out=0.3)
    assert not {e.image_digest() for e in splits.train} & {e.image_digest() for e in splits.validation}
    assert len(splits.validation) % 3 == 0
    assert splits.duplicates == 0


def test_more_is_held_out_on_request_and_the_less_is_in_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, numbered(80))
    write_rows(tmp_path, captioned(numbered(80)))
    sides = [{e.target for e in read_data(tmp_path, held_out=share).validation} for share in (0.1, 0.3, 0.6)]
    assert sides[0] < sides[1] < sides[2]
    assert 30 < len(sides[2]) < 66


@pytest.mark.parametrize("table", ["jsonl", "csv", "list"])
def test_group_by_a_column(tmp_path: Path, table: str) -> None:
    names = numbered(60)
    write_pictures(tmp_path, names)
    rows = [{"file_name": name, "caption": name, "patient": n // 3} for n, name in enumerate(names)]
    source: Path = tmp_path
    if table == "jsonl":
        write_rows(tmp_path, rows)
    elif table == "csv":
        lines = [",".join(map(str, row.values())) for row in rows]
        (tmp_path / "metadata.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    else:
        source = write_json(tmp_path / "list.json", rows)
    splits = read_data(source, group_by="patient", held_out=0.3)
    sides = [{int(example.target.split(".")[0]) // 3 for example in part} for part in (splits.train, splits.validation)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    assert sides[1] == {n for n in range(20) if is_held_out(group_digest(str(n)), 0.3)}
    with pytest.raises(DataError, match="no column 'clip' \\(columns: file_name, caption, patient\\)"):
        read_data(source, group_by="clip")


def test_a_row_without_its_group_is_listed(tmp_path: Path) -> None:
    write_pictures(tmp_path, numbered(6))
    rows = [row | {"clip": "a"} for row in captioned(numbered(6))]
    rows[2]["clip"], rows[3]["clip"], rows[4]["clip"] = None, ["a"], "b"
    del rows[5]["clip"]
    write_rows(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_data(tmp_path, group_by="clip")
    assert [problem.partition("jsonl:")[2] for problem in caught.value.problems] == [
        "3: the group 'clip' is None",
        "4: the group 'clip' is a list of 1",
        "6: no group 'clip'",
    ]


def test_groups_with_parts_of_their_own(tmp_path: Path) -> None:
    """A clip that is also tested on leaves training, and so does what shares an image with it."""
    write_pictures(
        tmp_path, ["train/0.png", "train/1.png", "train/2.png", "train/3.png", "test/4.png", "validation/5.png"]
    )
    shutil.copy(tmp_path / "train/1.png", tmp_path / "train/2.png")
    clips = ["a", "a", "b", "c", "a", "d"]
    names = [*(f"train/{n}.png" for n in range(4)), "test/4.png", "validation/5.png"]
    write_rows(tmp_path, [row | {"clip": clip} for row, clip in zip(captioned(names), clips, strict=True)])
    splits = read_data(tmp_path, group_by="clip")
    assert [e.target for e in splits.train] == ["caption of train/3.png"]
    assert splits.duplicates == 3
    assert "3 training examples left out: their image is also held out" in splits.summary()


def test_the_choice_is_written_down() -> None:
    """Figures that must not change: adapters that were trained before would be measured on images they know."""
    digest = hashlib.sha256(b"an image").hexdigest()
    by_hand = int(hashlib.sha256(f"held out {digest}".encode()).hexdigest()[:16], 16)
    assert held_out_rank(digest) == by_hand
    assert json.dumps([is_held_out(d, 0.1) for d in digests(12)]) == json.dumps(
        [int(hashlib.sha256(f"held out {d}".encode()).hexdigest()[:16], 16) / 2**64 < 0.1 for d in digests(12)]
    )
