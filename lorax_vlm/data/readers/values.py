"""What stands in one cell of somebody's table, as the text that is meant; anything else is refused, not guessed at.

No torch.
"""

import math
from collections.abc import Sequence
from typing import Any

from lorax_vlm.errors import MalformedRow
from lorax_vlm.foreign import quoted, text_problem

_MOST_BITS = 200  # of a whole number, as ``foreign.quoted`` shows it


def is_absent(value: Any) -> bool:
    """Whether nothing stands there: null, an empty list, or the not-a-number that tables write for null."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, list) and not value)


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: no letters, or only ones that do not show.

    >>> is_blank(" \\n"), is_blank("\\u200b"), is_blank("0")
    (True, True, False)
    """
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def require_text(value: Any, label: str, field: str) -> str:
    """A text that can be trained on.

    Raises:
        MalformedRow: It is empty or no text, or has what no tokenizer takes.
    """
    if not isinstance(value, str) or is_blank(value):
        raise _no_text(value, label, field)
    return _sound(value, label, field)


def _no_text(value: Any, label: str, field: str) -> MalformedRow:
    found = quoted(value)
    return MalformedRow(f"{label} is empty or not text: {found}", field=field, value=found, wanted="text")


def _sound(text: str, label: str, field: str) -> str:
    wrong = text_problem(text)
    if wrong is not None:
        raise MalformedRow(f"{label} has {wrong}", field=field, value=quoted(text), wanted="text of whole characters")
    return text


def written_out(value: Any) -> str | None:
    """A single value as text: true and false as yes and no, whole numbers without a fraction; None for no such value.

    >>> written_out(True), written_out(2), written_out(2.0), written_out(2.5), written_out([2])
    ('yes', '2', '2', '2.5', None)
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if value.bit_length() < _MOST_BITS else None
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return None


def captions_in(value: Any, label: str = "the caption", field: str = "caption") -> list[str]:
    """One caption, or a list of them.

    Raises:
        MalformedRow: There is none, or one is not text.
    """
    if not isinstance(value, list | tuple):
        return [require_text(value, label, field)]
    if not value:
        raise _no_text(value, label, field)
    return [require_text(caption, label, field) for caption in value]


def answers_in(value: Any, label: str = "an answer", field: str = "answer") -> list[str]:
    """What each annotator said: a value, a list of values, or objects with ``answer``; empty for one who said nothing.

    Such a one counts among the annotators, as in the challenge's figure.

    Raises:
        MalformedRow: Nobody said anything, or something is no answer.
    """
    said = [_said(item, label, field) for item in _annotators(value, label, field)]
    if not any(said):
        raise _no_text(value, label, field)
    return said


def _annotators(value: Any, label: str, field: str) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return [_of_object(item, label, field) if isinstance(item, dict) else item for item in value]
    if isinstance(value, dict):  # one annotator; or all of them, a list for each name, as ``datasets`` may write them
        inner = _of_object(value, label, field)
        return inner if isinstance(inner, list) else [inner]
    return [value]


def _of_object(item: dict[Any, Any], label: str, field: str) -> Any:
    if "answer" not in item:
        found = quoted(item)
        raise MalformedRow(f"{label} is {found} without 'answer'", field=field, value=found, wanted="text")
    return item["answer"]


def _said(item: Any, label: str, field: str) -> str:
    if item is None or (isinstance(item, float) and math.isnan(item)):
        return ""
    text = written_out(item)
    if text is None:
        raise _no_text(item, label, field)
    return "" if is_blank(text) else _sound(text, label, field)


def id_text(value: Any) -> str | None:
    """An id as text, so that 7, "7" and 7.0 are one; None when it is no id."""
    if isinstance(value, bool) or is_absent(value):
        return None
    text = written_out(value)
    return None if text is None or is_blank(text) or text_problem(text) is not None else text.strip()


def add_differing(row: Any, rows: list[Any]) -> bool:
    """Add a row to those of its id unless it is word for word one of them; whether it is not the first.

    Two that differ are enough to know, so no more are kept.
    """
    try:
        if row in rows:
            return False
    except RecursionError:  # lists within each other nearly as deep as can be read
        pass
    if len(rows) < 2:
        rows.append(row)
        return len(rows) > 1
    return True
