"""The file of ``lorax-vlm train --adapters``."""

from pathlib import Path

import pytest

from lorax_vlm.cli.order_file import ask, read_order_file
from lorax_vlm.errors import DataError


def write(folder: Path, text: str) -> Path:
    path = folder / "styles.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_entries_and_defaults(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        brief: {style: concise, data: captions/brief, learning_rate: 2e-4}
        counts: {task: counting, recipe: heavy, steps: 7, data: "hub:owner/name", images: pictures, streaming: true}
        """,
    )
    brief, counts = read_order_file(path, {"steps": 9, "recipe": "light", "seed": None, "data": None})
    assert (brief.name, brief.style, brief.task, brief.recipe) == ("brief", "concise", None, "light")
    assert brief.data == {"data": str(tmp_path / "captions" / "brief")}, "relative to the file"
    assert brief.config == {"max_steps": 9, "learning_rate": 2e-4}, "YAML itself takes 2e-4 for a string"
    assert (counts.style, counts.task, counts.recipe) == (None, "counting", "heavy")
    assert counts.data == {"data": "hub:owner/name", "images": tmp_path / "pictures", "streaming": True}
    assert counts.config == {"max_steps": 7}


def test_the_command_and_the_file_mean_the_same(tmp_path: Path) -> None:
    options = {"style": "concise", "steps": 3, "accumulate": 2, "patience": 4, "seed": 0}
    entry = ", ".join(f"{key}: {value}" for key, value in options.items())
    assert read_order_file(write(tmp_path, f"one: {{{entry}}}"), {}) == [ask("one", options)]


def test_everything_wrong_is_listed_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        a/b: {style: concise}
        list: [concise]
        typo: {style: concise, learning-rate: 1}
        both: {style: concise, task: counting}
        none: {steps: 5}
        words: {style: concise, steps: many, batch_size: yes, learning_rate: -1, seed: -1, streaming: 3}
        """,
    )
    with pytest.raises(DataError) as caught:
        read_order_file(path, {})
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 10
    for part in (
        "'a/b' cannot be", "list: expected settings", "typo: unknown setting 'learning-rate'", "both: give it a style",
        "none: give it a style", "steps must be a whole number", "batch_size must be a whole number from 1, got True",
        "learning_rate must be a number above 0", "seed must be a whole number from 0",
        "streaming must be true or false",
    ):  # fmt: skip
        assert part in problems
    with pytest.raises(DataError, match="no adapters"):
        read_order_file(write(tmp_path, ""), {})
    with pytest.raises(DataError, match="'one' occurs twice"):
        read_order_file(write(tmp_path, "one: {style: concise}\none: {style: creative}"), {})
    with pytest.raises(DataError, match="steps' occurs twice"):
        read_order_file(write(tmp_path, "one: {style: concise, steps: 1, steps: 2}"), {})
    with pytest.raises(DataError, match="No such file"):
        read_order_file(tmp_path / "nothing.yaml", {})
    with pytest.raises(DataError, match="1 problem"):
        read_order_file(write(tmp_path, "one: {style: ["), {})
