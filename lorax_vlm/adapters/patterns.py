"""Regular expressions of other people, matched in a bounded number of steps. No torch.

PEFT's configurations choose modules, ranks and scales by regular expressions. Python's engine tries one way after the
other, and a pattern of a dozen characters can keep it busy for years. Here a pattern is a set of texts, and reading a
character turns that set into the set of what may follow (Brzozowski, 1964), so a text is read once from left to right.
Sets met before are kept, and steps are counted: a pattern that needs too many is refused, whatever it looks like.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lorax_vlm.adapters.pattern_nodes import Chars, Node, PatternRefused, Reader

MAX_STEPS = 1_000_000
"""Of all patterns of one configuration together: some seconds."""

_NOTHING, _EMPTY, _ALL = 0, 1, 2
"""Sets of texts: none, the empty text alone, every text."""


class Machine:
    """Sets of texts by number, and what is left of each after a character. One budget of steps for all."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self._steps, self._left = steps, steps
        self._sets: list[tuple[Any, ...]] = [("nothing",), ("empty",), ("all",)]
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._nullable = [False, True, True]
        self._after: dict[tuple[int, str], int] = {}

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise PatternRefused("", f"together they need more than {self._steps:,} steps")

    def _number(self, key: tuple[Any, ...], nullable: bool) -> int:
        found = self._numbers.get(key)
        if found is None:
            self._spend(4)
            found = self._numbers[key] = len(self._sets)
            self._sets.append(key)
            self._nullable.append(nullable)
        return found

    def tag(self, mark: int) -> int:
        """The empty text alone, told apart from others by a mark."""
        return self._number(("tag", mark), True)

    def group(self, inner: int) -> int:
        """The same texts, kept as one member where sets are joined."""
        return self._number(("group", inner), self._nullable[inner])

    def _chars(self, chars: Chars) -> int:
        return self._number(("chars", chars), False)

    def seq(self, first: int, second: int) -> int:
        """A text of the one, then a text of the other."""
        if _NOTHING in (first, second):
            return _NOTHING
        if first == _EMPTY:
            return second
        if second == _EMPTY:
            return first
        return self._number(("seq", first, second), self._nullable[first] and self._nullable[second])

    def _star(self, inner: int) -> int:
        if inner in (_NOTHING, _EMPTY):
            return _EMPTY
        return self._number(("star", inner), True)

    def either(self, options: Iterable[int]) -> int:
        """A text of any of them."""
        return self._join("either", options, neutral=_NOTHING, final=_ALL)

    def _both(self, options: Iterable[int]) -> int:
        return self._join("both", options, neutral=_ALL, final=_NOTHING)

    def _join(self, kind: str, options: Iterable[int], neutral: int, final: int) -> int:
        members: set[int] = set()
        for option in options:
            found = self._sets[option]
            members.update(found[1] if found[0] == kind else (option,))
        self._spend(len(members))
        members.discard(neutral)
        if final in members:
            return final
        if len(members) <= 1:
            return members.pop() if members else neutral
        ordered = tuple(sorted(members))
        combine = any if kind == "either" else all
        return self._number((kind, ordered), combine(self._nullable[member] for member in ordered))

    def _not(self, inner: int) -> int:
        if inner in (_NOTHING, _ALL):
            return _ALL if inner == _NOTHING else _NOTHING
        found = self._sets[inner]
        return int(found[1]) if found[0] == "not" else self._number(("not", inner), not self._nullable[inner])

    def after(self, number: int, character: str) -> int:
        """What may follow a character."""
        found = self._after.get((number, character))
        if found is None:
            self._spend(1)
            found = self._after[number, character] = self._derive(self._sets[number], number, character)
        return found

    def _derive(self, found: tuple[Any, ...], number: int, character: str) -> int:
        kind, left = found[0], _NOTHING
        if kind == "chars":
            self._spend(len(found[1].ranges))
            left = _EMPTY if found[1].matches(character) else _NOTHING
        elif kind == "seq":
            left = self.seq(self.after(found[1], character), found[2])
            if self._nullable[found[1]]:
                left = self.either([left, self.after(found[2], character)])
        elif kind == "star":
            left = self.seq(self.after(found[1], character), number)
        elif kind == "either":
            left = self.either([self.after(member, character) for member in found[1]])
        elif kind == "both":
            left = self._both([self.after(member, character) for member in found[1]])
        elif kind == "group":
            left = self.after(found[1], character)
        elif kind == "not":
            left = self._not(self.after(found[1], character))
        elif kind == "all":
            left = _ALL
        return left

    def read(self, number: int, text: str) -> int:
        """What is left after a whole text."""
        for character in text:
            if number == _NOTHING:
                break
            number = self.after(number, character)
        return number

    def accepts(self, number: int) -> bool:
        """Whether the empty text is among them."""
        return self._nullable[number]

    def marks(self, number: int) -> set[int]:
        """The marks of those tags that the empty text leads to."""
        found = self._sets[number]
        if found[0] == "tag":
            return {found[1]}
        if not self._nullable[number]:
            return set()
        if found[0] in ("either", "both"):
            return set().union(*map(self.marks, found[1]))
        last = {"seq": 2, "group": 1}.get(found[0])
        return self.marks(found[last]) if last else set()

    def build(self, pattern: str, follow: int, *, at_start: bool = True) -> int:
        """The texts of a pattern, each followed by one of ``follow``.

        Args:
            pattern: As Python's ``re`` reads it.
            follow: What comes behind it.
            at_start: Whether it stands where texts begin; elsewhere an anchor to the beginning matches nothing.

        Raises:
            PatternRefused: It is not understood, or needs too much.
        """
        return self._build(Reader(pattern).read(), follow, at_start, pattern)

    def _build(self, node: Node, follow: int, at_start: bool | None, pattern: str) -> int:
        """``at_start`` is None behind other things, where an anchor to the beginning is refused."""
        kind = node[0]
        if kind == "chars":
            whole = self.seq(self._chars(node[1]), follow)
        elif kind == "alt":
            whole = self.either([self._build(branch, follow, at_start, pattern) for branch in node[1]])
        elif kind == "seq":
            whole = follow
            leading = next((i for i, item in enumerate(node[1]) if item[0] not in ("begin", "look")), len(node[1]))
            for place, item in reversed(list(enumerate(node[1]))):
                whole = self._build(item, whole, at_start if place <= leading else None, pattern)
        elif kind == "repeat":
            whole = self._build_repeat(node, follow, pattern)
        elif kind == "end":
            newline = [self._chars(Chars((("\n", "\n"),)))] if node[1] else []
            whole = self._both([self.either([_EMPTY, *newline]), follow])
        elif kind == "look":
            ahead = self._build(node[2], _ALL, at_start, pattern)
            whole = self._both([self._not(ahead) if node[1] else ahead, follow])
        elif at_start is None:
            raise PatternRefused(pattern, "an anchor to the beginning stands behind something")
        else:
            whole = follow if at_start else _NOTHING
        return whole

    def _build_repeat(self, node: Node, follow: int, pattern: str) -> int:
        _, inner, least, most = node
        if most is None:
            if not _is_plain(inner):
                raise PatternRefused(pattern, "an anchor or a lookahead is repeated without end")
            follow = self.seq(self._star(self._build(inner, _EMPTY, None, pattern)), follow)
        else:
            behind = follow
            for _ in range(most - least):
                behind = self.either([self._build(inner, behind, None, pattern), follow])
            follow = behind
        for _ in range(least):
            follow = self._build(inner, follow, None, pattern)
        return follow


def _is_plain(node: Node) -> bool:
    """Whether it looks at nothing but its own characters."""
    if node[0] in ("seq", "alt"):
        return all(map(_is_plain, node[1]))
    return _is_plain(node[1]) if node[0] == "repeat" else node[0] == "chars"


# --- what PEFT does with patterns -------------------------------------------------------------------------------------


class FullMatch:
    """Whether a pattern is a whole name, as ``re.fullmatch`` says."""

    def __init__(self, machine: Machine, pattern: str) -> None:
        """Read the pattern; see ``Machine.build``."""
        self._machine, self._pattern = machine, pattern
        with _no_deeper(pattern):
            self._whole = machine.build(pattern, _EMPTY)

    def __call__(self, name: str) -> bool:
        """Whether it is."""
        with _no_deeper(self._pattern):
            return self._machine.accepts(self._machine.read(self._whole, name))


class FirstMatch:
    """Which of some patterns is the first to be a name, or its end behind a dot: what PEFT's patterns of values do."""

    def __init__(self, machine: Machine, patterns: Sequence[str]) -> None:
        """Read the patterns; see ``Machine.build``."""
        self._machine = machine
        before_a_dot = machine.build(r".*\.", _EMPTY)
        whole, ends = [], []
        for number, pattern in enumerate(patterns):
            with _no_deeper(pattern):
                end = machine.build("\n?", machine.tag(number))
                whole.append(machine.build(pattern, end))
                ends.append(machine.build(pattern, end, at_start=False))
        # One member of what is left behind every dot, however many patterns there are.
        whole.append(machine.seq(before_a_dot, machine.group(machine.either(ends))))
        self._whole = machine.either(whole)

    def __call__(self, name: str) -> int | None:
        """Its place among them; None when none is."""
        with _no_deeper(""):
            return min(self._machine.marks(self._machine.read(self._whole, name)), default=None)


@contextmanager
def _no_deeper(pattern: str) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise PatternRefused(pattern, "too many optional parts follow each other") from None
