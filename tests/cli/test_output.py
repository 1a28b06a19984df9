"""What is printed: other people's words as they are, and in every surrounding a program may run in."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorax_vlm.cli import main as main_module
from lorax_vlm.cli.output import as_json_values, flag, print_json, print_table, say
from lorax_vlm.types import GenerationSettings

# Markup, emoji codes, control characters, and what turns or hides text.
WORDS = [
    "[bold]x",
    "[/red]",
    "[link=file:///etc]x[/link]",
    ":smile:",
    "a\x1b[2Jb",
    "\x1b]0;title\x07",
    "\u202eabc",
    "$x$",
]


@pytest.mark.parametrize("word", WORDS)
def test_words_of_others_are_printed_as_they_are(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"said: {word}")
    flag("red", "broken", word)
    print_table(["who", word], [(word, word)], title=word)
    printed = capsys.readouterr().out
    shown = word.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e")
    assert printed.count(shown) == 6
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", printed)


def in_terminal(columns: int, code: str) -> str:
    """What a program prints into a terminal of some width."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stdout=follower, env=environment, check=True)
    os.close(follower)
    printed = b""
    try:
        while chunk := os.read(leader, 65536):
            printed += chunk
    except OSError:  # Linux's word for the end
        pass
    os.close(leader)
    return printed.decode()


TABLE = """
from lorax_vlm.cli.output import print_table
row = ("blip2-opt-2.7b-coco.holiday", 8, "[x] " + "word " * 30)
print_table(["name", "rank ", "what it does"], [row], "all of [them]")
"""


def test_a_table_in_a_pipe_is_one_line_per_row() -> None:
    done = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True, check=True)
    title, head, row = done.stdout.splitlines()
    assert title == "all of [them]"
    assert head.split() == ["name", "rank", "what", "it", "does"]
    assert row.split()[:3] == ["blip2-opt-2.7b-coco.holiday", "8", "[x]"]
    assert row.count("word") == 30


def test_a_table_in_a_terminal_is_framed_unless_it_is_too_narrow() -> None:
    wide, narrow = in_terminal(100, TABLE), in_terminal(20, TABLE)
    assert "┃" in wide
    assert "blip2-opt-2.7b-coco.holiday" in wide, "the name of a row is never broken"
    assert "┃" not in narrow
    assert "blip2-opt-2.7b-coco.holiday" in narrow
    assert narrow.count("word") == 30


def test_words_of_others_in_a_framed_table_are_printed_as_they_are() -> None:
    code = f"""
from lorax_vlm.cli.output import print_table
print_table(["who", "what"], [("row", word) for word in {WORDS!r}], title="[bold]t")
"""
    printed = in_terminal(100, code)
    assert "┃" in printed
    assert "[bold]t" in printed
    for word in WORDS:
        assert word.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\u202e", "\\u202e") in printed


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "utf-8", "utf-16-le"])
def test_json_and_text_in_every_encoding(encoding: str) -> None:
    code = (
        "from lorax_vlm.cli.output import print_json, say\n"
        "print_json({'a': 'naïve 😀 日本', 'half': '\\ud83d', 'nan': float('nan'), 'inf': [float('-inf')]})\n"
        "say('naïve 😀 日本')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    document, _, line = done.stdout.decode(encoding).rpartition("}\n")
    found = json.loads(document + "}", parse_constant=pytest.fail)
    assert found == {"a": "naïve 😀 日本", "half": "\\ud83d", "nan": None, "inf": [None]}
    assert "na" in line


def test_json_of_records_paths_errors_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": Path("a"), "error": ValueError("x"), 3: GenerationSettings(), "set": {1}})
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == "a"
    assert found["error"] == {"error": "ValueError", "message": "x"}
    assert found["3"]["num_beams"] == 1
    with pytest.raises(TypeError, match="object cannot be written"):
        as_json_values(object())


def test_an_output_that_cannot_be_written_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lorax_vlm", "models", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "PathError: standard output: No space left on device.\n"


def test_a_bug_shows_as_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ZeroDivisionError("of [red]")

    monkeypatch.setattr(main_module, "command", lambda: fails)
    with pytest.raises(SystemExit) as stop:
        main_module.main()
    printed = capsys.readouterr().err
    assert stop.value.code == 1
    assert printed.startswith("Traceback")
    assert "ZeroDivisionError: of [red]" in printed
    assert "lorax-vlm doctor" in printed


def test_where_a_test_replaces_standard_output_it_gets_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is looked up when something is printed, not when the module is imported."""
    other = io.StringIO()
    monkeypatch.setattr(sys, "stdout", other)
    say("hello")
    assert other.getvalue() == "hello\n"


def test_exit_codes(run, stored, tmp_path: Path) -> None:
    """0; 1 for what failed; 2 for what was asked wrongly, by the command line's own parser too."""
    assert run("adapters", "list", code=0)
    assert "AdapterNotFound" in run("adapters", "show", "nobody", code=1)
    assert "not both" in run("train", "x", "--style", "plain", "--task", "counting", code=2)
    assert "No such option" in run("train", "x", "--nonsense", code=2)
