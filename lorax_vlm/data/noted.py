"""Streams that remember what they have given. No torch."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from lorax_vlm.data.examples import Example
from lorax_vlm.data.problems import Problem

_DIGEST = re.compile(r"[0-9a-f]{64}")


class NotedStream(Iterable[Example]):
    """A stream that notes which images it has given, by the SHA-256 of each, and which rows it left out.

    A run may be continued by another process: ``record`` and ``recall`` carry the notes from one to the other.
    """

    def __init__(self, source: Iterable[Example]) -> None:
        """Note what ``source`` gives; it can be read again from the start."""
        self._source = source
        self._images: set[str] = set()
        self._problems: dict[str, Problem] = {}
        self._lost = False

    def __iter__(self) -> Iterator[Example]:
        """Read from the start, and note."""
        for example in self._source:
            self._images.add(example.image_digest())
            yield example

    @property
    def images(self) -> frozenset[str] | None:
        """The images of all readings. None when they are not known: nothing was read, or notes of before are lost."""
        return frozenset(self._images) if self._images and not self._lost else None

    @property
    def problems(self) -> list[Problem]:
        """Malformed rows of all readings that were left out on request, each once."""
        found = {problem.place: problem for problem in getattr(self._source, "problems", ())}
        return list({**self._problems, **found}.values())

    def record(self) -> dict[str, Any]:
        """The notes, to be written as JSON."""
        images = None if self._lost else sorted(self._images)
        return {"images": images, "problems": [problem.record() for problem in self.problems]}

    def recall(self, record: Any) -> None:
        """Go on from notes that were written down; from none, what was given before is not known."""
        try:
            images = [str(digest) for digest in record["images"]]
            problems = [Problem(**{key: str(value) for key, value in row.items()}) for row in record["problems"]]
        except (TypeError, KeyError, AttributeError):
            images = [""]
            problems = []
        self._lost = self._lost or not all(map(_DIGEST.fullmatch, images))
        self._images.update(images if not self._lost else ())
        self._problems.update((problem.place, problem) for problem in problems)
