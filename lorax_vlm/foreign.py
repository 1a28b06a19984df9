"""Text and JSON that other people wrote: read without surprises, quoted without damage. No torch.

Everything that can be wrong with it is a ``ValueError`` with one readable reason, so a caller needs one ``except``.
"""

import codecs
import json
import math
import re
import unicodedata
from typing import Any

_LONG_SECRET = 6
MAX_QUOTED = 60
"""Characters of a foreign value that a message shows."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NAMES = {"utf-8-sig": "UTF-8", "utf-8": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}


def decode_text(data: bytes) -> str:
    """Bytes to text: by their byte order mark, else as UTF-8.

    Raises:
        ValueError: They are neither.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {_NAMES[encoding]} text: {error.reason} at byte {error.start}") from None


def parse_json(data: bytes | str, *, unique: bool = False) -> Any:
    """A JSON document as plain values; NaN and infinite numbers are no JSON.

    Args:
        data: The document.
        unique: A name that occurs twice in one object is an error instead of the last one counting.

    Raises:
        ValueError: It is not JSON, too deep, or has a number that no computer holds.
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    hook = _unique if unique else None
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {where}") from None
    except RecursionError:
        raise ValueError("not readable JSON: objects or lists within each other too deep") from None
    except ValueError as error:
        reason = "a whole number of thousands of digits" if "integer string conversion" in str(error) else str(error)
        raise ValueError(f"not JSON: {reason}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:MAX_QUOTED]} is too large for a number")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return record


def text_problem(text: str) -> str | None:
    """What makes a text unfit to be stored, tokenised or printed; None for nothing.

    >>> text_problem("half an emoji: \\ud83d")
    'half of a character (\\\\ud83d) at position 15'
    """
    for place, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            return f"half of a character (\\u{ord(character):04x}) at position {place}"
        if character == "\0":
            return f"a null character at position {place}"
    return None


def quoted(value: Any, limit: int = MAX_QUOTED) -> str:
    """A foreign value for a message: as Python writes it, cut short, without ever building all of a huge one.

    >>> quoted("a" * 100, 10)
    "'aaaaaa..."
    """
    if isinstance(value, str):
        text = repr(value[:limit])
        return text if len(value) <= limit and len(text) <= limit else f"{text[: limit - 3].rstrip(chr(92))}..."
    if isinstance(value, bool | float | None):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 200 else "a whole number of many digits"
    if isinstance(value, dict | list | tuple | set):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"an empty {kind.split()[1]}"
    return f"a {type(value).__name__}"


def printable(text: str) -> str:
    r"""A foreign text for a screen: control characters, and those that turn or hide text, are written out.

    >>> printable("title\x1b]0;owned\x07")
    'title\\x1b]0;owned\\x07'
    """
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in "\n\t" or not unicodedata.category(character).startswith("C"):
        return character
    return character.encode("unicode_escape").decode("ascii")


def shown_address(address: str) -> str:
    """An address without what may be secret in it: user, password, and the query, where signatures stand.

    >>> shown_address("https://me:word@host/a.lorax?X-Amz-Signature=5f")
    'https://host/a.lorax?...'
    """
    scheme, slashes, rest = address.partition("://")
    if not slashes or len(scheme) > 100:
        return address
    rest = re.sub(r"^[^/?#]*@", "", rest)
    found = re.search(r"[?#]", rest)
    return f"{scheme}://{rest}" if found is None else f"{scheme}://{rest[: found.start()]}?..."


def without_secrets(text: str, address: str) -> str:
    """What another library says about an address, without what ``shown_address`` leaves out.

    A few letters are hidden where they stand in an address only: elsewhere they are parts of words.
    """
    rest = address.partition("://")[2]
    for found in (re.match(r"[^/?#]*@", rest), re.search(r"[?#].+", rest, re.DOTALL)):
        if found is not None:
            secret = found[0].strip("@?#")
            text = text.replace(found[0], found[0].replace(secret, "...") if secret else found[0])
            text = text.replace(secret, "...") if len(secret) >= _LONG_SECRET else text
    return text
