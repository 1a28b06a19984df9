"""Data sets through ``datasets``, read from a local folder as from the hub: whole, and streamed."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.image_facts import RowImage
from lorax_vlm.data.readers.hub import read_hub_dataset
from lorax_vlm.data.readers.listing import images_below
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.errors import DataError, UsageError
from tests.data_for_tests import all_examples, captioned, numbered, png, targets, write_pictures, write_rows

COLUMNS = {"question": "q", "answer": "a"}
BOTH = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)  # 5 s after each reading of a stream


def write_set(folder: Path, count: int = 12, bad: int | None = None) -> str:
    (folder / "train").mkdir(parents=True)
    with (folder / "train" / "metadata.jsonl").open("w") as file:
        for index in range(count):
            name = f"{index}.png"
            Image.new("RGB", (8, 8), (index * 9, 0, 0)).save(folder / "train" / name)
            question = "" if index == bad else f"question {index}?"
            row = {"file_name": name, "q": question, "a": ["red", "red", "blue"], "type": "color"}
            file.write(json.dumps(row) + "\n")
    return str(folder)


def write_parquet(folder: Path, splits: dict[str, list[int]], **columns: Any) -> str:
    """A set with pictures of these numbers; columns are functions of the number. Captions are the numbers."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    folder.mkdir(parents=True)
    for split, numbers in splits.items():
        made = {name: [value(n) for n in numbers] for name, value in columns.items()}
        made = made or {"caption": [str(n) for n in numbers]}
        pictures = [{"bytes": png(n), "path": None} for n in numbers]
        features = Features({"image": ImageFeature(), **Dataset.from_dict(made).features})
        Dataset.from_dict({"image": pictures, **made}, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


# --- whole ------------------------------------------------------------------------------------------------------------


def test_columns_by_name(tmp_path: Path) -> None:
    splits = read_hub_dataset(write_set(tmp_path / "set"), columns=COLUMNS, held_out=0.3)
    assert len(splits.train) + len(splits.validation) == 12
    example = next(e for e in all_examples(splits) if e.question == "question 4?")
    assert (example.target, example.kind, example.answers) == ("red", "color", ("red", "red", "blue"))
    assert example.open_image().getpixel((0, 0)) == (36, 0, 0)
    assert splits.source == "hub:set"
    assert str(tmp_path) not in splits.summary() + example.name


def test_images_stay_in_their_rows_until_they_are_opened(tmp_path: Path) -> None:
    splits = read_data(f"hub:{write_parquet(tmp_path / 'set', {'train': list(range(30))})}")
    examples = all_examples(splits)
    assert all(isinstance(e.image, RowImage) and not hasattr(e.image, "data") for e in examples)
    assert [e.open_image().getpixel((0, 0)) for e in examples] == [(int(e.target), 0, 7) for e in examples]
    assert {e.image_digest() for e in examples} == {Example(png(n), "", "").image_digest() for n in range(30)}


@BOTH
def test_rows_of_the_usual_shapes(tmp_path: Path, streaming: bool) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "captions": {"caption": lambda n: [f"a {n}", f"b {n}"]},
        "texts": {"text": lambda n: f"a {n}"},
        "vqav2": {"question": lambda n: "q?", "answers": lambda n: [{"answer": "yes", "answer_id": 1}] * 3},
        "numbers": {
            "question": lambda n: "q?",
            "answer": lambda n: float(n) if n % 2 else None,
            "answers": lambda n: None if n % 2 else ["x"],
        },
    }
    for name, columns in shapes.items():
        path = write_parquet(tmp_path / name, {"train": list(range(20))}, **columns)
        examples = all_examples(read_data(f"hub:{path}", streaming=streaming))
        assert len(examples) == (40 if name == "captions" else 20)
    assert {e.target for e in examples} == {"x", *(str(n) for n in range(1, 20, 2))}


def test_questions_that_are_no_text_are_listed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set", {"train": [0, 1, 2]}, question=lambda n: n, answer=lambda n: "x")
    with pytest.raises(DataError) as caught:
        read_data(f"hub:{path}")
    assert len(caught.value.problems) == 3
    assert "train[1]: the question is empty or not text: 1" in caught.value.problems[1]


@BOTH
def test_bad_rows_are_listed(tmp_path: Path, streaming: bool) -> None:
    source = write_set(tmp_path / "set", bad=7)
    with pytest.raises(DataError, match=r"train\[7\]: the question is empty or not text: ''"):
        read_hub_dataset(source, columns=COLUMNS, streaming=streaming)
    splits = read_hub_dataset(source, columns=COLUMNS, skip_bad_rows=True, streaming=streaming)
    assert len(all_examples(splits)) == 11
    assert len(splits.skipped) == 1


def test_missing_columns_and_sets(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    for streaming in (False, True):
        with pytest.raises(DataError, match="neither 'caption' nor 'text' nor 'question'"):
            read_hub_dataset(source, streaming=streaming)
        with pytest.raises(DataError, match="no column 'picture' \\(columns: image, q, a, type\\)"):
            read_hub_dataset(source, columns={**COLUMNS, "image": "picture"}, streaming=streaming)
        with pytest.raises(DataError, match="there is no such folder"):
            read_hub_dataset(str(tmp_path / "nothing-here"), streaming=streaming)
    with pytest.raises(DataError, match="unknown fields picture"):
        read_hub_dataset(source, columns={"picture": "image"})


# --- what is held out -------------------------------------------------------------------------------------------------


@BOTH
def test_splits_of_its_own_are_used(tmp_path: Path, streaming: bool) -> None:
    parts = {"train": list(range(30)), "validation": [30, 31, 32, 3], "test": [40, 5]}
    splits = read_data(f"hub:{write_parquet(tmp_path / 'set', parts)}", streaming=streaming)
    assert sorted(targets(splits.validation)) == ["3", "30", "31", "32"]
    assert sorted(targets(splits.test)) == ["40", "5"]
    assert sorted(map(int, targets(splits.train))) == [n for n in range(30) if n not in (3, 5)]
    assert (splits.train.left_out if streaming else splits.duplicates) == 2


@pytest.mark.parametrize("count", [2, 3, 8, 60, 150])
def test_streamed_or_not_the_same_images_are_held_out(tmp_path: Path, count: int) -> None:
    numbers = [n // 2 for n in range(2 * count)]  # two rows of each image
    path = write_parquet(tmp_path / "set", {"train": numbers}, caption=str)
    write_pictures(tmp_path / "folder", numbered(count))
    write_rows(tmp_path / "folder", [{"file_name": f"{n}.png", "caption": str(n)} for n in range(count)])
    whole, stream, folder = (
        read_data(f"hub:{path}"),
        read_data(f"hub:{path}", streaming=True),
        read_data(tmp_path / "folder"),
    )
    trained_on = Counter(targets(stream.train))
    assert set(targets(whole.validation)) == set(targets(stream.validation)) == set(targets(folder.validation))
    assert set(trained_on) == set(targets(whole.train)) == set(targets(folder.train))
    assert set(trained_on.values()) == {2}
    assert stream.train.left_out == 2 * len(folder.validation)


def test_a_long_stream_is_validated_on_some_of_what_is_held_out_and_trained_on_none_of_it(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set", {"train": list(range(300))})
    whole = read_data(f"hub:{path}")
    stream = read_hub_dataset(path, streaming=True, validation_count=10)
    assert len(stream.validation) == 10
    assert set(targets(stream.validation)) < set(targets(whole.validation))
    assert set(targets(stream.train)) == set(targets(whole.train))
    assert stream.train.left_out == len(whole.validation)
    assert all(e.digest and isinstance(e.image, bytes) for e in stream.train), "known, so that it can be remembered"


def test_images_of_the_validation_split_leave_a_stream(tmp_path: Path) -> None:
    """Two captions for each image, and images that are in both splits under other names."""
    source = tmp_path / "set"
    for part, names in (("train", numbered(12)), ("validation", ["a.png", "b.png"])):
        write_pictures(source / part, names, first=0 if part == "train" else 50)
        write_rows(source / part, captioned(names))
    (source / "train" / "9.png").write_bytes((source / "validation" / "a.png").read_bytes())
    for streaming in (False, True):
        splits = read_data(f"hub:{source}", streaming=streaming)
        assert "caption of 9.png" not in targets(splits.train)
        assert len(splits.validation) == 2
        assert (splits.train.left_out if streaming else splits.duplicates) == 1


@BOTH
def test_a_single_split_with_a_column_of_parts(tmp_path: Path, streaming: bool) -> None:
    said = ["train", "val", "test", "restval", "train", "train"]
    path = write_parquet(tmp_path / "set", {"test": list(range(6))}, caption=str, split=lambda n: said[n])
    splits = read_data(f"hub:{path}", streaming=streaming)
    assert [sorted(targets(part)) for part in splits.parts().values()] == [["0", "3", "4", "5"], ["1"], ["2"]]


@BOTH
def test_a_set_with_a_test_split_only(tmp_path: Path, streaming: bool) -> None:
    path = write_parquet(tmp_path / "set", {"test": list(range(6)), "validation": [7]})
    splits = read_parts(f"hub:{path}", streaming=streaming)
    assert [len(list(part)) for part in splits.parts().values()] == [0, 1, 6]
    with pytest.raises(DataError, match="0 training and 1 validation"):
        read_data(f"hub:{path}", streaming=streaming)


@pytest.mark.parametrize(
    "parts",
    [
        {"test": range(6)},
        {"validation": range(6)},
        {"full": range(30)},
        {"train": range(30), "restval": range(30, 60), "val": range(60, 70), "test": range(70, 80)},
        {"training": range(3), "train": range(2, 30), "restval": range(30, 32)},
        {"train": range(30), "validation": range(30, 40), "dev": range(40, 50), "valid": range(50, 53)},
        {"train": range(9), "test": range(20, 24), "eval": range(24, 27)},
        {"train": range(40), "validation": [0], "test": [39]},
    ],
)
def test_splits_are_the_same_parts_streamed_or_not(tmp_path: Path, parts: dict[str, Any]) -> None:
    """Several splits of one part are read one after the other; a single one is what it is called."""
    source = write_parquet(tmp_path / "set", {split: list(numbers) for split, numbers in parts.items()})
    named = [{"split": split, "path": f"{split}.parquet"} for split in parts]
    header = f"---\nconfigs: {json.dumps([{'config_name': 'default', 'data_files': named}])}\n---\n"
    (tmp_path / "set" / "README.md").write_text(header)
    whole, stream = (check(read_parts(f"hub:{source}", streaming=streaming)) for streaming in (False, True))
    for one, other in zip(whole.parts().values(), stream.parts().values(), strict=True):
        assert sorted(targets(one)) == sorted(targets(other))
    assert sum(len(set(numbers)) for numbers in parts.values()) >= len(targets(stream.train))


@pytest.mark.parametrize("by_column", [False, True])
def test_no_image_of_another_part_is_trained_on_however_far_behind_it_comes(tmp_path: Path, by_column: bool) -> None:
    """20 pictures that are trained on, and all of them but five again behind the rows that are validated on."""
    numbers = {"train": list(range(20)), "validation": list(range(100, 105)), "test": [*range(200, 230), *range(15)]}
    if by_column:
        rows = [(split, n) for split, some in numbers.items() for n in some]
        path = tmp_path / "set"
        write_parquet(path, {"train": [n for _, n in rows]}, caption=str)
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path / "train.parquet")
        pyarrow.parquet.write_table(table.append_column("split", [[s for s, _ in rows]]), path / "train.parquet")
    else:
        write_parquet(tmp_path / "set", numbers)
    whole = read_parts(f"hub:{tmp_path / 'set'}")
    stream = read_hub_dataset(str(tmp_path / "set"), streaming=True, validation_count=5)
    assert sorted(targets(stream.train)) == sorted(targets(whole.train)) == sorted(map(str, range(15, 20)))
    assert whole.duplicates == 15
    assert stream.train.left_out == (65 if by_column else 15), "in one split the rows of other parts are passed, too"
    assert [len(stream.validation), len(stream.test)] == [5, 5]


def test_parts_that_a_column_names_behind_the_first_rows(tmp_path: Path) -> None:
    """Sorted by part, so that the first rows name one; or the first rows name nothing that is known."""
    said = [*["train"] * 300, *["validation"] * 7, *["test"] * 8]
    path = write_parquet(tmp_path / "set", {"train": list(range(315))}, caption=str, split=lambda n: said[n])
    stream = read_hub_dataset(path, streaming=True, validation_count=10)
    assert [len(stream.validation), len(stream.test)] == [7, 8]
    assert len(targets(stream.train)) == 300
    said[:300] = ["fold 1"] * 300
    path = write_parquet(tmp_path / "later", {"train": list(range(315))}, caption=str, split=lambda n: said[n])
    with pytest.raises(DataError, match="the split is 'fold 1'"):
        read_data(f"hub:{path}")
    stream = read_hub_dataset(path, streaming=True, validation_count=10)
    with pytest.raises(DataError, match=r"the split is '(test|validation)', and the first rows name no part"):
        list(stream.train)


def test_a_row_is_listed_once_whether_it_is_among_the_first_or_not(tmp_path: Path) -> None:
    """Two bad rows are the same to the letter, so they count twice."""
    bad = (5, 6, 200, 290)
    numbers = [0 if n in bad[1:3] else n for n in range(300)]
    rows = iter(range(300))
    path = write_parquet(
        tmp_path / "set", {"train": numbers}, caption=lambda _: "" if (n := next(rows)) in bad else str(n)
    )
    stream = read_hub_dataset(path, streaming=True, validation_count=10, skip_bad_rows=True)
    assert len(stream.skipped) == 2
    for _ in range(2):
        assert len(targets(stream.train)) + stream.train.left_out == 296
        assert len(stream.train.problems) == 2


def test_groups(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set", {"train": list(range(60))}, caption=str, clip=lambda n: n // 3)
    splits = read_data(f"hub:{path}", group_by="clip", held_out=0.3)
    sides = [{int(target) // 3 for target in targets(part)} for part in (splits.train, splits.validation)]
    assert not sides[0] & sides[1]
    with pytest.raises(UsageError, match="--group-by has to see all rows"):
        read_data(f"hub:{path}", group_by="clip", streaming=True)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_streaming_reads_again_from_the_start(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    splits = read_data(f"hub:{source}", columns=COLUMNS, streaming=True).with_prompt("Q: {question} A:")
    assert splits.streamed
    assert "streamed training" in splits.summary()
    assert splits.kind == "questions"
    once = [example.prompt for example in splits.train]
    assert len(once) + len(splits.validation) == 12
    assert all(prompt.startswith("Q: question ") for prompt in once)
    assert [example.prompt for example in splits.train] == once


def test_a_bad_row_of_a_stream_stops_when_it_is_met(tmp_path: Path) -> None:
    """A row behind the first ones, which are looked at before: damaged, of another kind, or no text."""
    path = write_parquet(
        tmp_path / "set",
        {"train": [n % 40 for n in range(120)]},
        caption=str,
    )
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(f"{path}/train.parquet").to_pylist()
    table[100] = {"image": {"bytes": png(1)[:30], "path": None}, "caption": "cut"}
    table[110] = {"image": {"bytes": png(1), "path": None}, "caption": ""}
    rebuilt = pyarrow.Table.from_pylist(table)
    pyarrow.parquet.write_table(rebuilt, f"{path}/train.parquet")
    stream = read_hub_dataset(path, streaming=True, validation_count=2)
    with pytest.raises(DataError, match=r"as streamed\]: the (image is not a readable image|caption is empty)"):
        list(stream.train)
    left_out = read_hub_dataset(path, streaming=True, validation_count=2, skip_bad_rows=True)
    for _ in range(2):
        rows = targets(left_out.train)
        assert len(rows) + left_out.train.left_out == 118
        assert len(left_out.train.problems) == 2
    next(iter(left_out.train))  # a further epoch that ends before it comes to them
    assert len(left_out.train.problems) == 2
    assert len(left_out.with_prompt("a photo of").train.problems) == 2


def test_questions_among_captions_of_a_stream(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "set",
        {"train": list(range(90))},
        caption=lambda n: None if n == 80 else str(n),
        question=lambda n: "q?" if n == 80 else None,
        answer=lambda n: "a",
    )
    stream = read_hub_dataset(path, streaming=True, validation_count=2)
    with pytest.raises(DataError, match="questions among captions"):
        list(stream.train)
    with pytest.raises(DataError, match=r"captions \(89 rows\) and questions \(1 rows\)"):
        read_data(f"hub:{path}")


# --- where images may come from ---------------------------------------------------------------------------------------


@BOTH
def test_rows_name_no_address_and_no_file_outside(tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "set"
    write_pictures(folder, ["images/0.png"])
    write_pictures(tmp_path, ["private.png"], first=66)
    os.symlink(tmp_path / "private.png", folder / "images" / "link.png")
    names = [
        *("images/0.png", str(folder / "images" / "0.png"), str(tmp_path / "private.png"), "../private.png"),
        *(
            "http://127.0.0.1:9/admin?delete=all",
            "file:///etc/hostname",
            "/dev/zero",
            "images/link.png",
            "images",
            "gone.png",
        ),
    ]
    write_rows(folder, [{"image": name, "caption": f"{n}"} for n, name in enumerate(names)], "train.jsonl")
    splits = read_parts(f"hub:{folder}", skip_bad_rows=True, streaming=streaming)
    assert sorted(targets(all_examples(splits))) == ["0", "1"]
    assert len(splits.skipped) == 8
    assert {e.open_image().getpixel((0, 0)) for e in all_examples(splits)} == {(0, 0, 7)}


def test_a_downloaded_set_reads_files_of_its_own_snapshot_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the hub's cache are links to blobs beside them; those of another set are none of its business."""
    from huggingface_hub import constants

    from lorax_vlm.data.readers.columns import Columns
    from lorax_vlm.data.readers.embedded import embedded_image
    from lorax_vlm.data.readers.hub import _files
    from lorax_vlm.errors import MalformedRow

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    images = {}
    for name in ("datasets--owner--name", "datasets--owner--private"):
        snapshot = tmp_path / "hub" / name / "snapshots" / "0" / "train"
        write_pictures(tmp_path / "hub" / name / "blobs", ["abc"])
        snapshot.mkdir(parents=True)
        (snapshot / "0.png").symlink_to("../../../blobs/abc")
        images[name] = str(snapshot / "0.png")
    own, other = images.values()
    files = _files("owner/name")

    def read(path: str) -> Any:
        return embedded_image({"image": {"bytes": None, "path": path}}, Columns(), files)

    assert read(own) == Path(own)
    for path in (other, "0.png", "/etc/hostname", "/dev/zero", "http://127.0.0.1:9/0.png"):
        with pytest.raises(MalformedRow):
            read(path)
    with pytest.raises(MalformedRow, match="is text"):
        embedded_image({"image": own}, Columns(), [])


def test_a_link_to_a_device_as_an_image(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", count=4)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (Path(source) / "train" / "1.png").unlink()
    (Path(source) / "train" / "1.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"train\[1\]: .*(no regular file|leads out of the folder)"):
        read_hub_dataset(source, columns=COLUMNS)


def test_splits_are_asked_to_be_known(tmp_path: Path) -> None:
    from lorax_vlm.data.readers.hub import _known_parts

    assert _known_parts("x", {"full": 1}) == ({"full": 1}, [])
    assert _known_parts("x", {"train": 1, "extra": 2}) == ({"train": 1}, ["splits that are not read: 'extra'"])
    with pytest.raises(DataError, match="its splits are en, de; expected train"):
        _known_parts("x", {"en": 1, "de": 2})


def check(splits: DataSplits) -> DataSplits:
    """Nothing on two sides."""
    sides = [{e.image_digest() for e in part} for part in splits.parts().values()]
    assert not sides[0] & (sides[1] | sides[2])
    return splits


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "there is no such folder, and it is no id"),
        ("/", "the root of the file system"),
        ("a b", "there is no such folder, and it is no id"),
        ("a/b/c", "there is no such folder, and it is no id"),
        ("x" * 400, "it is no name"),
        ("a\0b", "no id of the hub|it is no name"),
        (__file__, "it is a file; name it without hub:"),
    ],
)
def test_what_names_no_data_set(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_data(f"hub:{name}")


@BOTH
def test_cells_are_what_the_table_means_by_them(tmp_path: Path, streaming: bool) -> None:
    """The name of a class and not its number, also in lists; the decimals of short floats, not the nearest double."""
    from datasets import ClassLabel, Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    count, animals, kinds = 12, ["cat", "dog"], ["easy", "hard"]
    features = Features(
        {
            "image": ImageFeature(),
            "question": Value("string"),
            "answers": List(ClassLabel(names=animals)),
            "type": ClassLabel(names=kinds),
            "split": ClassLabel(names=["train", "test"]),
        }
    )
    columns = {
        "image": [{"bytes": png(n), "path": None} for n in range(count)],
        "question": ["which?"] * count,
        "answers": [[n % 2, n % 2] for n in range(count)],
        "type": [n % 2 for n in range(count)],
        "split": [int(n >= 9) for n in range(count)],
    }
    (tmp_path / "set").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    splits = read_data(f"hub:{tmp_path / 'set'}", streaming=streaming)
    assert len(splits.test) == 3, "the column of parts says test"
    assert {(e.target, e.answers, e.kind) for e in [*splits.train, *splits.validation, *splits.test]} == {
        ("cat", ("cat", "cat"), "easy"),
        ("dog", ("dog", "dog"), "hard"),
    }
    numbers = features | {"answers": Value("float32")}
    columns["answers"] = [0.1, 2.0, 1.7] * 4
    Dataset.from_dict(columns, features=Features(numbers)).to_parquet(tmp_path / "set" / "train.parquet")
    splits = read_data(f"hub:{tmp_path / 'set'}", streaming=streaming)
    assert {e.target for e in [*splits.train, *splits.validation, *splits.test]} == {"0.1", "2", "1.7"}


@BOTH
def test_a_column_of_parts_does_not_contradict_the_splits(tmp_path: Path, streaming: bool) -> None:
    source = write_parquet(tmp_path / "set", {"train": list(range(10)), "test": [20, 21]}, caption=str, split=str)
    splits = read_parts(f"hub:{source}", streaming=streaming)
    assert len(splits.test) == 2, "a column of another meaning is none of ours"
    said = {n: "test" if n == 4 else "train" for n in range(10)} | {20: "test", 21: "train"}
    source = write_parquet(
        tmp_path / "other", {"train": list(range(10)), "test": [20, 21]}, caption=str, split=lambda n: said[n]
    )
    with pytest.raises(DataError) as caught:
        list(read_parts(f"hub:{source}", streaming=streaming).train)
    told = "\n".join(caught.value.problems)
    assert "train[4]: the split is 'test', in a file or split for train" in told
    assert "test[1]: the split is 'train', in a file or split for test" in told


@BOTH
def test_places_of_choices_as_answers_are_said(tmp_path: Path, streaming: bool) -> None:
    source = write_parquet(
        tmp_path / "set",
        {"train": list(range(10))},
        question=lambda n: f"q{n}?",
        answer=lambda n: n % 4,
        choices=lambda n: ["a", "b", "c", "d"],
    )
    notes = read_data(f"hub:{source}", streaming=streaming).notes
    assert "answers such as '0' are learnt as they stand, not as what they point to in 'choices'" in notes


@BOTH
def test_configurations_are_named_behind_a_colon(tmp_path: Path, streaming: bool) -> None:
    for name in ("one", "two"):
        write_parquet(tmp_path / "set" / name, {"train": list(range(8))}, caption=lambda n, name=name: f"{name} {n}")
    configs = [{"config_name": name, "data_dir": name} for name in ("one", "two")]
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    with pytest.raises(DataError, match=r"several configurations: one, two\nName one behind a colon: hub:.*set:one"):
        read_data(f"hub:{tmp_path / 'set'}", streaming=streaming)
    splits = read_data(f"hub:{tmp_path / 'set'}:two", streaming=streaming)
    assert splits.source == "hub:set:two"
    assert all(target.startswith("two ") for target in targets(list(splits.train)))
    with pytest.raises(DataError, match=r"BuilderConfig 'three' not found. Available: \['one', 'two'\]"):
        read_data(f"hub:{tmp_path / 'set'}:three", streaming=streaming)


@BOTH
def test_a_folder_is_looked_through_once(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows name their images by a number."""
    looked: list[Path] = []

    def counted(folder: Path) -> list[Path]:
        looked.append(folder)
        return images_below(folder)

    monkeypatch.setattr("lorax_vlm.data.readers.image_files.images_below", counted)
    write_pictures(tmp_path / "set" / "im", numbered(30))
    rows = [{"image_id": number, "question": f"q{number}?", "answer": "a"} for number in range(30)]
    write_rows(tmp_path / "set", rows, "train.jsonl")
    splits = read_data(f"hub:{tmp_path / 'set'}", streaming=streaming)
    assert len(list(splits.train)) + len(splits.validation) == 30
    assert len(looked) == 1
