"""Drawn scenes as files: what is written can be read and trained on."""

import json
from collections import Counter
from pathlib import Path

import pytest

from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.data.world.examples import scene_questions
from tests.data_for_tests import all_examples


def test_captions(run, tmp_path: Path) -> None:
    assert "Wrote 5 scenes with plain captions to" in run("scenes", "export", tmp_path / "a", "--count", 5)
    run("scenes", "export", tmp_path / "b", "--count", 5, "--style", "concise", "--split", "test")
    for name, style, split in (("a", "plain", "train"), ("b", "concise", "test")):
        found = {example.target for example in all_examples(read_data(tmp_path / name))}
        assert found == {scene.caption(style) for scene in iterate_scenes(split, 5)}


@pytest.mark.parametrize("task", ["counting", "reasoning", "general"])
def test_questions_are_those_of_the_scenes(run, tmp_path: Path, task: str) -> None:
    """What training would draw itself comes back: each image, its questions, answers and types."""
    printed = run("scenes", "export", tmp_path / "set", "--task", task, "--count", 20)
    drawn = scene_questions(task, "train", 20, per_scene=None)
    found = all_examples(read_parts(tmp_path / "set"))
    assert Counter(map(said, found)) == Counter(map(said, drawn))
    images = len({example.name for example in drawn})
    assert f"Wrote {images} scenes with {len(drawn)} {task} questions to" in printed
    assert len(list((tmp_path / "set").glob("*.png"))) == images
    assert {row["type"] for row in rows_of(tmp_path / "set")} == {example.kind for example in drawn}


def test_exported_questions_train(run, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    run("scenes", "export", folder, "--task", "color", "--count", 8)
    options = ("--data", folder, "--steps", 1, "--batch-size", 16, "--eval-every", 1)
    printed = run("train", "colors", "--task", "color", *options)
    assert "'Question: What color" in printed
    wrong = run("train", "style", "--style", "plain", *options, code=(1, 2))
    assert "holds questions" in wrong
    assert "give --task NAME instead of a style" in wrong


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--task", "counting", "--style", "plain"), "not both"),
        (("--task", "dancing"), "Unknown task 'dancing'"),
        (("--style", "dancing"), "Unknown caption style 'dancing'"),
        (("--split", "dancing"), "Unknown split 'dancing'"),
    ],
)
def test_nothing_is_written_for_wrong_options(run, tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    assert reason in run("scenes", "export", tmp_path / "set", *options, code=(1, 2))
    assert not (tmp_path / "set").exists()


def test_folders_that_cannot_be_written(run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert "it is a file" in run("scenes", "export", tmp_path / "file", code=1)
    assert "Not a directory" in run("scenes", "export", tmp_path / "file" / "in it", code=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert "it is not empty" in run("scenes", "export", tmp_path / "full", "--task", "color", code=1)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def said(example: Example) -> tuple[object, ...]:
    return example.open_image().tobytes(), example.question, example.target, example.answers, example.kind


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
