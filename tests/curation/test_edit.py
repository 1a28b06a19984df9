"""Find and replace in captions and answers; nothing else changes."""

import json
from pathlib import Path

import pytest

from lorax_vlm.curation.edit import replace_in_texts
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.sources import read_parts
from lorax_vlm.errors import UsageError


def data(folder: Path, texts: list[str], field: str = "caption", **more: str) -> DataSplits:
    for number, scene in enumerate(iterate_scenes("test", len(texts))):
        scene.image.save(folder / f"{number}.png")
    rows = [{"file_name": f"{number}.png", field: text, **more} for number, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_parts(folder)


def texts(splits: DataSplits) -> list[str]:
    return sorted(example.target for example in splits.select("all"))


def test_letters_are_replaced_as_they_stand(tmp_path: Path) -> None:
    splits = data(tmp_path, ["a photo of a cat (1)", "a photo of a dog", "snow", "a photo of "])
    found = replace_in_texts(splits, "a photo of ", "")
    assert texts(found.splits) == ["a cat (1)", "a dog", "a photo of ", "snow"]
    assert [(before, after) for _, before, after in sorted(found.changes)] == [
        ("a photo of a cat (1)", "a cat (1)"),
        ("a photo of a dog", "a dog"),
    ]
    assert texts(replace_in_texts(splits, "(1)", "[1]").splits)[0] == "a photo of "
    assert replace_in_texts(splits, "(1)", "").changes[0][2] == "a photo of a cat "
    assert texts(splits) == ["a photo of ", "a photo of a cat (1)", "a photo of a dog", "snow"], "the source stays"


def test_regular_expressions(tmp_path: Path) -> None:
    splits = data(tmp_path, ["two  cats", "one dog", "three birds"])
    found = replace_in_texts(splits, r"(\w+)\s+(\w+)", r"\2, \1", regex=True)
    assert texts(found.splits) == ["birds, three", "cats, two", "dog, one"]
    for find, put in (("(", ""), ("a", r"\1"), ("", "x"), ("(cap)", r"\g<foo>"), ("a{99999999999999999999}", "")):
        with pytest.raises(UsageError):
            replace_in_texts(splits, find, put, regex=True)


def test_what_nothing_would_be_left_of_stays(tmp_path: Path) -> None:
    found = replace_in_texts(data(tmp_path, ["cat", "a cat"]), "cat", "")
    assert texts(found.splits) == ["a ", "cat"]
    assert len(found.emptied) == 1


def test_answers_of_all_annotators_and_no_question(tmp_path: Path) -> None:
    splits = data(tmp_path, ["grey", "grey", "red"], "answer", question="grey or red?")
    found = replace_in_texts(splits, "grey", "gray")
    assert texts(found.splits) == ["gray", "gray", "red"]
    assert all(example.answers == (example.target,) for example in found.splits.select("all"))
    assert {example.question for example in found.splits.select("all")} == {"grey or red?"}


def test_the_target_is_the_most_frequent_answer_of_what_is_left(tmp_path: Path) -> None:
    splits = data(tmp_path, ["x", "y", "z"], "answers", question="what colour?")
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["answers"] = ["blue"] * 2 + ["gray"] * 2 + ["grey"] * 3
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = read_parts(tmp_path)
    assert texts(splits) == ["grey"] * 3
    found = replace_in_texts(splits, "gray", "blue")
    assert texts(found.splits) == ["blue"] * 3
    assert len(replace_in_texts(data(tmp_path, ["cat", "dog"]), "cat", "\u200b").emptied) == 1
