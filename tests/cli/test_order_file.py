"""The file of ``lorax-vlm train --adapters``."""

import os
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
        counts: {task: counting, recipe: heavy, sites: [vision, lm], rank: 16, dropout: 0.1,
                 steps: 7, data: "hub:owner/name", images: pictures, streaming: true}
        """,
    )
    brief, counts = read_order_file(path, {"steps": 9, "recipe": "light", "seed": None, "data": None})
    assert (brief.name, brief.style, brief.task, brief.recipe) == ("brief", "concise", None, "light")
    assert brief.data == {"data": str(tmp_path / "captions" / "brief")}, "relative to the file"
    assert brief.config == {"max_steps": 9, "learning_rate": 2e-4}, "YAML itself takes 2e-4 for a string"
    assert (counts.style, counts.task, counts.recipe) == (None, "counting", "heavy")
    assert counts.data == {"data": "hub:owner/name", "images": tmp_path / "pictures", "streaming": True}
    assert counts.config == {"max_steps": 7}
    assert counts.changes == {"sites": ["vision", "lm"], "rank": 16, "dropout": 0.1}


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
        no: {style: concise}
        010: {style: concise}
        2024-01-02: {style: concise}
        truth: {style: no, sites: vision, alpha: .inf, dropout: 1, held_out: .nan}
        """,
    )
    with pytest.raises(DataError) as caught:
        read_order_file(path, {})
    problems = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 18
    for part in (
        "'a/b' cannot be", "list: expected settings", "typo: unknown setting 'learning-rate'",
        "both: it has a style and a task; it learns one of them",
        "none: give it a style", "steps must be a whole number", "batch_size must be a whole number from 1, got True",
        "learning_rate must be a number above 0", "seed must be a whole number from 0",
        "streaming must be true or false", "the name False is no text", "the name 8 is no text", "the name a date is",
        "style must be text (in quotes, where YAML reads something else), got False", "sites must be a list of names",
        "alpha must be a number above 0, got inf", "dropout must be a number from 0 up to 1", "held_out must be",
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


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {style: concise}\nb: *a",
        "a: &x [1,2]\nb: &y [*x,*x]\nc: &z [*y,*y]\nd: [*z,*z]",
        "<<: {style: concise}\none: {style: x}\none: {style: y}",
        "[" * 10_000,
        "one: " + "{a: " * 5_000,
        "? [a, b]\n: {style: concise}",
        "? {a: b}\n: {style: concise}",
        "one: !!python/object/apply:os.system [id]",
        "one: !!binary x",
        "one: !!timestamp 2024-99-99",
        "one: !!int abc",
        "one: {style: concise, steps: 99999999999999999999999999}",
        "one: {style: " + "x" * 2**20 + "}",
        "\x00",
        'one: {style: "\\ud83d"}',
        "just words",
        "- a\n- b",
    ],
)
def test_hostile_files_are_refused_in_a_few_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        read_order_file(write(tmp_path, text), {})
    assert len(str(caught.value)) < 2_000


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "styles.yaml"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("one: {style: knapp}", encoding=encoding)
        assert read_order_file(path, {})[0].style == "knapp"
    path.write_bytes("one: {style: größer}".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_order_file(path, {})


@pytest.mark.parametrize(
    "text",
    [
        "a: {style: concise, steps: !!bool x}",
        "a: {style: concise, steps: !!int x}",
        "!!bool x: {style: concise}",
        "a: {style: !!python/object/apply:os.getcwd []}",
        "? [a]\n: {style: concise}",
        "a: {style: concise}\n<<: {a: {style: creative}}",
        "a: {style: ~, task: ~}",
        "a: {style: ~}",
        'a: {style: concise, data: "x\\0y"}',
        'a: {style: concise, data: "\\ud83d"}',
        "a: " + "[" * 20_000,
        "a: {style: " + "9" * 5000 + "}",
        "a: {style: concise}\n" + "#" * 70_000,
    ],
)
def test_odd_yaml_is_refused_in_few_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError) as caught:
        read_order_file(write(tmp_path, text), {})
    assert len(str(caught.value)) < 2000


def test_many_names_and_much_text_take_no_time(tmp_path: Path) -> None:
    many = "".join(f"{number}: a\n" for number in range(8000))
    with pytest.raises(DataError) as caught:
        read_order_file(write(tmp_path, many), {})
    assert len(caught.value.problems) == 8000


def test_only_ordinary_files_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for, a device never ends."""
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop, tmp_path, tmp_path / "gone", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(DataError):
            read_order_file(path, {})
    (tmp_path / "link").symlink_to(write(tmp_path, "a: {style: concise, data: ~nobody-of-this-name/x}"))
    (asked,) = read_order_file(tmp_path / "link", {})
    assert asked.data == {"data": str(tmp_path / "~nobody-of-this-name" / "x")}


def test_data_alone_say_what_is_learnt(tmp_path: Path) -> None:
    """As ``lorax-vlm train NAME --data FOLDER`` does."""
    file = tmp_path / "order.yaml"
    file.write_text("places: {data: photos}\n", encoding="utf-8")
    (asked,) = read_order_file(file, {})
    assert (asked.style, asked.task, asked.data) == (None, None, {"data": str(tmp_path / "photos")})
    file.write_text("places: {steps: 3}\n", encoding="utf-8")
    with pytest.raises(DataError, match="give it a style, a task or data"):
        read_order_file(file, {})
