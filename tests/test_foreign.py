"""Reading and quoting what other people wrote."""

import codecs
import doctest

import pytest

from lorax_vlm import foreign
from lorax_vlm.foreign import parse_json, printable, quoted, text_problem


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(foreign).failed == 0


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_byte_order_marks_say_the_encoding(mark: bytes, encoding: str) -> None:
    assert parse_json(mark + '{"a": "é"}'.encode(encoding)) == {"a": "é"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b'{"a":\n NO}', "line 2, column 2"),
        (b"[" * 100_000, "too deep"),
        (b'{"a":' * 100_000, "too deep"),
        (b"9" * 5000, "thousands of digits"),
        (b"[NaN]", "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "1e999 is too large"),
        (b"\xff\xfeab\x00", "not UTF-16 text"),
        (b"caf\xe9", "not UTF-8 text: unexpected end of data at byte 3"),
    ],
)
def test_everything_wrong_is_one_readable_value_error(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(data)
    assert reason in str(caught.value)
    assert type(caught.value) is ValueError


def test_a_name_twice() -> None:
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="twice"):
        parse_json('{"a": 1, "a": 2}', unique=True)


def test_text_that_cannot_be_stored() -> None:
    assert text_problem("a cat 😀 on a mat\n") is None
    assert "null" in str(text_problem("a\0b"))
    assert "\\udc00" in str(text_problem("\udc00"))


def test_quotes_are_short() -> None:
    for value in ("x" * 10**6, "'\"" * 10**5, "\\" * 1000, ["y" * 10**6], 10**5000, {"a": {}}, None, 1.5):
        assert len(quoted(value)) <= 60


def test_what_is_printed_cannot_steer_a_terminal() -> None:
    assert "\x1b" not in printable("\x1b[2J")
    assert "\u202e" not in printable("\u202egnp.exe")
    assert printable("naïve 😀 [red]") == "naïve 😀 [red]"
