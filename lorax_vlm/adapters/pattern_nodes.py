"""The text of a regular expression as nodes. No torch.

Understood is what a set of texts can express: characters and classes, groups, alternatives, repetitions, anchors and
lookahead. Back references, lookbehind, atomic groups and flags are not; they are refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorax_vlm.foreign import quoted

_MAX_DEPTH = 40
_MAX_REPEAT = 1000
_SPECIAL = frozenset(".^$*+?{[\\|()")
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "w": lambda character: character.isalnum() or character == "_",
    "s": str.isspace,
}


class PatternRefused(ValueError):
    """A pattern that is not run here; says why."""

    def __init__(self, pattern: str, reason: str, option: str = "") -> None:
        self.pattern, self.reason = pattern, reason
        what = f"the pattern {quoted(pattern)} is" if pattern else "its patterns are"
        super().__init__(f"{option}{': ' if option else ''}{what} not run: {reason}")


@dataclass(frozen=True)
class Chars:
    """One character: of some ranges or classes, or of none of them."""

    ranges: tuple[tuple[str, str], ...] = ()
    classes: tuple[tuple[str, bool], ...] = ()
    """Letter of a class, and whether its opposite is meant."""
    negated: bool = False

    def matches(self, character: str) -> bool:
        """Whether a character is one of them."""
        found = any(low <= character <= high for low, high in self.ranges) or any(
            _CLASSES[letter](character) is not opposite for letter, opposite in self.classes
        )
        return found is not self.negated


Node = tuple[Any, ...]
"""``(kind, ...)``: chars, seq, alt, repeat, look, begin, end."""
_DOT: Node = ("chars", Chars((("\n", "\n"),), negated=True))


class Reader:
    """Turns the text of a pattern into nodes."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.place, self.depth = pattern, 0, 0

    def read(self) -> Node:
        """All of it.

        Raises:
            PatternRefused: It is no pattern, or not understood.
        """
        node = self._alternatives()
        if self.place < len(self.pattern):
            raise self._refused("a group is closed that was never opened")
        return node

    def _refused(self, reason: str) -> PatternRefused:
        return PatternRefused(self.pattern, reason)

    def _next(self) -> str:
        return self.pattern[self.place] if self.place < len(self.pattern) else ""

    def _take(self, text: str) -> bool:
        if self.pattern.startswith(text, self.place):
            self.place += len(text)
            return True
        return False

    def _alternatives(self) -> Node:
        branches = [self._sequence()]
        while self._take("|"):
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def _sequence(self) -> Node:
        items: list[Node] = []
        while self._next() not in ("", "|", ")"):
            items.append(self._repeated(self._item()))
        return ("seq", items)

    def _item(self) -> Node:
        character = self._next()
        self.place += 1
        if character == "(":
            return self._group()
        if character == "[":
            return ("chars", self._set())
        if character == "\\":
            return self._escape()
        if character == ".":
            return _DOT
        if character in "^$":
            return ("begin",) if character == "^" else ("end", True)
        if character in _SPECIAL:
            raise self._refused(f"{character!r} repeats nothing")
        return ("chars", Chars(((character, character),)))

    def _group(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self._refused("groups within each other too deep")
        kind: Node | None = None
        if self._take("?"):
            if self._take("=") or self._take("!"):
                kind = ("look", self.pattern[self.place - 1] == "!")
            elif self._take("P<"):
                end = self.pattern.find(">", self.place, self.place + 100)
                if end < 0 or not self.pattern[self.place : end].isidentifier():
                    raise self._refused("a group's name is none")
                self.place = end + 1
            elif not self._take(":"):
                raise self._refused("flags, lookbehind, references and conditions are not understood")
        inner = self._alternatives()
        if not self._take(")"):
            raise self._refused("a group is not closed")
        self.depth -= 1
        return inner if kind is None else (*kind, inner)

    def _escape(self) -> Node:
        character = self._next()
        self.place += 1
        if character and character in "dwsDWS":
            return ("chars", Chars(classes=((character.lower(), character.isupper()),)))
        if character in ("A", "Z"):
            return ("begin",) if character == "A" else ("end", False)
        if not character or character.isalnum():
            raise self._refused(f"\\{character} is not understood")
        return ("chars", Chars(((character, character),)))

    def _set(self) -> Chars:
        negated = self._take("^")
        ranges: list[tuple[str, str]] = []
        classes: list[tuple[str, bool]] = []
        first = True
        while first or self._next() != "]":
            low = self._member(classes)
            first = False
            if low is None or not (self._next() == "-" and self.pattern[self.place + 1 : self.place + 2] != "]"):
                ranges += [(low, low)] if low is not None else []
                continue
            self.place += 1
            high = self._member(classes)
            if high is None or high < low:
                raise self._refused("a range in brackets goes backwards")
            ranges.append((low, high))
        self.place += 1
        return Chars(tuple(ranges), tuple(classes), negated)

    def _member(self, classes: list[tuple[str, bool]]) -> str | None:
        """A character in brackets; None for a class, which is added to ``classes``."""
        character = self._next()
        self.place += 1
        if not character:
            raise self._refused("a bracket is not closed")
        if character != "\\":
            return character
        kind, *rest = self._escape()
        if kind != "chars":
            raise self._refused("an anchor in brackets")
        found: Chars = rest[0]
        classes += found.classes
        return None if found.classes else found.ranges[0][0]

    def _repeated(self, item: Node) -> Node:
        bounds = self._bounds()
        if bounds is None:
            return item
        if item[0] in ("begin", "end", "look"):
            raise self._refused("an anchor or a lookahead is repeated")
        if self._take("+"):
            raise self._refused("possessive repetition is not understood")
        self._take("?")  # few before many: the same texts
        if self._bounds() is not None:
            raise self._refused("a repetition is repeated")
        return ("repeat", item, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        if self._next() != "{":
            return None
        text, closed, _ = self.pattern[self.place + 1 : self.place + 12].partition("}")
        low, comma, high = text.partition(",")
        numbers = [part for part in (low, high) if part]
        if not closed or not numbers or not all(part.isascii() and part.isdecimal() for part in numbers):
            raise self._refused("braces that are no number of repetitions")
        least, most = int(low or 0), int(high) if high else None if comma else int(low)
        if max(least, most or 0) > _MAX_REPEAT or (most is not None and most < least):
            raise self._refused(f"repetitions from 0 to {_MAX_REPEAT} are understood")
        self.place += len(text) + 2
        return least, most
