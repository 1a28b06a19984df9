"""Data sets through ``datasets``, read from a local folder as from the hub."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data.hub import read_hub_dataset
from lorax_vlm.data.sources import read_data
from lorax_vlm.errors import DataError

COLUMNS = {"question": "q", "answer": "a"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


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


def test_columns_by_name(tmp_path: Path) -> None:
    splits = read_hub_dataset(write_set(tmp_path / "set"), columns=COLUMNS, validation_count=4)
    assert (len(splits.train), len(splits.validation)) == (8, 4)
    example = splits.train[0]
    assert (example.question, example.target, example.kind) == ("question 4?", "red", "color")
    assert example.answers == ("red", "red", "blue")
    assert example.open_image().getpixel((0, 0)) == (36, 0, 0)


def test_streaming_reads_again_from_the_start(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    splits = read_data(f"hub:{source}", columns=COLUMNS, streaming=True).with_prompt("Q: {question} A:")
    # 200 validation rows were asked for, so nothing is left to train on in a set of twelve
    assert len(splits.validation) == 12
    splits = read_hub_dataset(source, columns=COLUMNS, validation_count=4, streaming=True).with_prompt("Q: {question}")
    assert splits.streamed
    assert "streamed training" in splits.summary()
    once = [example.prompt for example in splits.train]
    assert sorted(once) == sorted(f"Q: question {index}?" for index in range(4, 12))
    assert [example.prompt for example in splits.train] == once


def test_bad_rows_are_listed(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", bad=7)
    with pytest.raises(DataError, match=r"\[7\]: question or answer is empty"):
        read_hub_dataset(source, columns=COLUMNS, validation_count=2)
    splits = read_hub_dataset(source, columns=COLUMNS, validation_count=2, skip_bad_rows=True)
    assert len(splits.train) == 9
    assert len(splits.skipped) == 1


def test_a_bad_row_of_a_stream_stops_when_it_is_met(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", bad=7)
    splits = read_hub_dataset(source, columns=COLUMNS, validation_count=2, streaming=True)
    with pytest.raises(DataError, match="question or answer is empty"):
        list(splits.train)
    left_out = read_hub_dataset(source, columns=COLUMNS, validation_count=2, streaming=True, skip_bad_rows=True)
    assert len(list(left_out.train)) == 9


def test_missing_columns_and_sets(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    with pytest.raises(DataError, match="neither question nor caption"):
        read_hub_dataset(source, validation_count=2)
    with pytest.raises(DataError, match="unknown fields picture"):
        read_hub_dataset(source, columns={"picture": "image"})
    with pytest.raises(DataError, match="cannot be loaded"):
        read_hub_dataset(str(tmp_path / "nothing-here"))


def test_images_of_the_validation_rows_leave_training(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    folder = tmp_path / "set" / "train"
    (folder / "9.png").write_bytes((folder / "0.png").read_bytes())
    splits = read_hub_dataset(source, columns=COLUMNS, validation_count=4)
    assert splits.duplicates == 1
    assert "question 9?" not in {example.question for example in splits.train}
