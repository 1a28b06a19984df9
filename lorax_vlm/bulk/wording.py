"""From what a model said to what is written. No torch."""

import string
from collections.abc import Mapping
from dataclasses import dataclass

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import require_text

FIELDS = ("prefix", "caption", "suffix", "folder", "name", "adapter")
PLAIN = "{prefix}{caption}{suffix}"
_LONGEST_PHRASE, _TIMES = 8, 3


@dataclass(frozen=True)
class Wording:
    """What is put around a caption. Changing it asks no model anything."""

    prefix: str = ""
    suffix: str = ""
    template: str = PLAIN
    """Of the fields of ``FIELDS``, in braces."""

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            UsageError: One is no text, or the template has another field.
        """
        for name in ("prefix", "suffix", "template"):
            require_text(name, getattr(self, name))
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise UsageError(f"The template {quoted(self.template)} cannot be read: {error}.") from None
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        for _, found, spec, conversion in parsed:
            if found is not None and (found not in FIELDS or spec or conversion):
                raise UsageError(f"The template {quoted(self.template)} has {{{found}}}; known are {known}.")
        if not any(found == "caption" for _, found, _, _ in parsed):
            raise UsageError(f"The template {quoted(self.template)} has no {{caption}}.")

    def text(self, caption: str, about: Mapping[str, str]) -> str:
        """What is written.

        Args:
            caption: As the model said it.
            about: ``folder``, ``name`` and ``adapter``.
        """
        return self.template.format_map({"prefix": self.prefix, "suffix": self.suffix, **about, "caption": caption})


def marks(text: str, finish: str) -> tuple[str, ...]:
    """What speaks against a text, in words: it is empty, was cut off at the token limit, or repeats itself."""
    found = ["empty"] if not text.strip() else []
    found += ["cut off"] if finish == "length" else []
    return (*found, "repeats") if repeats(text) else tuple(found)


def repeats(text: str) -> bool:
    """Whether a phrase of up to eight words comes three times in a row.

    >>> repeats("a cat and a cat and a cat and"), repeats("a cat and a dog")
    (True, False)
    """
    words = text.casefold().split()
    for length in range(1, _LONGEST_PHRASE + 1):
        equal = 0
        for place in range(len(words) - length):
            equal = equal + 1 if words[place] == words[place + length] else 0
            if equal == length * (_TIMES - 1):
                return True
    return False
