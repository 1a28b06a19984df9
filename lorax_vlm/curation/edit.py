"""Texts of a data set changed by find and replace. No torch."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from lorax_vlm.answers import most_frequent_answer
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.readers.values import is_blank
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted


@dataclass(frozen=True)
class Edited:
    """A data set with changed texts."""

    splits: DataSplits
    changes: tuple[tuple[str, str, str], ...]
    """Name of the row, the text before, the text after."""
    emptied: tuple[str, ...]
    """Rows of which nothing would be left; they are as they were."""


def replace_in_texts(splits: DataSplits, find: str, put: str, *, regex: bool = False) -> Edited:
    """Replace something in every caption, or answer; questions stay.

    Args:
        splits: The data.
        find: What is looked for, letter for letter.
        put: What stands in its place; with ``regex`` ``\\\\1`` stands for the first group.
        regex: ``find`` is a regular expression.

    Raises:
        UsageError: ``find`` is empty or no regular expression, ``put`` names a group that is not there, or the
            data are a stream.
    """
    change, changes, emptied = changer(find, put, regex=regex), list[tuple[str, str, str]](), list[str]()
    if splits.streamed:
        raise UsageError("A stream has no texts that could be changed; leave out --streaming.")

    def edited(example: Example) -> Example:
        answers = tuple(change(answer) for answer in example.answers)
        target = most_frequent_answer(answers) if any(answers) else change(example.target)
        if (target, answers) == (example.target, example.answers):
            return example
        if is_blank(target):
            emptied.append(example.name)
            return example
        changes.append((example.name, example.target, target))
        return replace(example, target=target, answers=answers)

    def of(part: Iterable[Example]) -> list[Example]:
        return [edited(example) for example in part]

    parts = {name: of(part) for name, part in splits.parts().items()}
    new = replace(splits, **parts, shared=of(splits.shared))  # type: ignore[arg-type]
    return Edited(new, tuple(changes), tuple(emptied))


def changer(find: str, put: str, *, regex: bool) -> Callable[[str], str]:
    """What replaces something in a text; arguments and errors are those of ``replace_in_texts``."""
    if not find:
        raise UsageError("What is to be replaced is empty.")
    if not regex:
        return lambda text: text.replace(find, put)
    try:
        pattern = re.compile(find)
        pattern.sub(put, "")  # which names a group that is not there, before anything is changed
    except (re.error, IndexError, OverflowError, RecursionError) as error:
        raise UsageError(f"{quoted(find)} with {quoted(put)} is no regular expression: {error}.") from None
    return lambda text: pattern.sub(put, text)
