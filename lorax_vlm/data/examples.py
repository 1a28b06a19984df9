"""Training examples, whatever they come from: an image, an optional prompt, and the text to learn. No torch."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from lorax_vlm.answers import most_frequent_answer
from lorax_vlm.data.image_facts import draw, example_digest
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.problems import Problem, write_problems
from lorax_vlm.errors import DataError, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import percent

Kind = Literal["captions", "questions"]
Choice = Literal["train", "validation", "test", "held-out", "all"]
_SHOWN = 5
_FEW = 4
"""Validation examples: fewer hardly tell one step from another."""


@dataclass(frozen=True)
class Example:
    """One image with the text to learn from it."""

    image: ImageSource | Callable[[], Image.Image]
    """Anything ``load_image`` reads, or a function that gives it."""
    target: str
    name: str
    """How errors and listings call it, such as ``photos/metadata.jsonl:12``; the same on every machine."""
    prompt: str = ""
    question: str = ""
    """The question alone; the prompt is made of it by the base's template."""
    answers: tuple[str, ...] = ()
    """What all annotators said, where that is known; ``target`` is the most frequent of them."""
    kind: str = ""
    """Type of the question, such as ``counting``; results are given by it."""
    digest: str = field(default="", compare=False, repr=False)
    """SHA-256 of the image's content, where whoever made the example knows it; see ``image_digest``."""
    group: str = field(default="", compare=False)
    """What its image shares with others, such as a clip or a patient, where data are grouped by it."""

    def open_image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            ImageError: It cannot be read.
        """
        return load_image(draw(self.image) if callable(self.image) else self.image)

    def image_digest(self) -> str:
        """SHA-256 of the image's content, in hexadecimal: of the file's bytes, or of pixels where there are none.

        It is the same for the same image under other names and in other files, and stays the image's own when objects
        come and go. A drawing is known by its function and arguments.

        Raises:
            ImageError: It cannot be read.
        """
        return self.digest or self._found_digest

    @cached_property
    def _found_digest(self) -> str:
        return example_digest(self.image)

    @property
    def image_key(self) -> str:
        """What to remember the image by: equal for equal images, for ever. See ``image_digest``."""
        return self.image_digest()

    @property
    def unit(self) -> tuple[str, str]:
        """What is independent of others: the group where data are grouped, else the image."""
        return ("group", self.group) if self.group else ("image", self.image_digest())


def answered(
    image: ImageSource | Callable[[], Image.Image],
    question: str,
    answers: Sequence[str],
    name: str,
    kind: str = "",
    digest: str = "",
) -> Example:
    """An example of visual question answering; it is trained on the most frequent answer."""
    target = most_frequent_answer(answers)
    return Example(image, target, name, question=question, answers=tuple(answers), kind=kind, digest=digest)


@dataclass(frozen=True)
class DataSplits:
    """Training, validation and test examples with a name for all."""

    train: Sequence[Example] | Iterable[Example]
    """A stream (without a length) when the set is read as it is trained on."""
    validation: Sequence[Example]
    source: str
    """What the data are called, for people and records: no path of this machine."""
    skipped: Sequence[Problem] = ()
    """Malformed rows that were left out on request."""
    unlearnable: Sequence[Problem] = ()
    """Sound examples that the base cannot learn and that were left out: their answer is none that a classifier has."""
    duplicates: int = 0
    """Training examples left out because their image (or group) is also in the validation or test examples."""
    test: Sequence[Example] = ()
    """Examples that the data set apart for measuring; never trained on, never validated on."""
    notes: Sequence[str] = ()
    """What was read otherwise than it is written, such as paths with backslashes."""
    shared: Sequence[Example] = ()
    """The training examples that were left out as ``duplicates``, as far as known; they can be measured with."""
    held_out: float | None = None
    """Share of the images that the validation examples are of, where the data bring none along."""

    @property
    def label(self) -> str:
        """``source`` as a name of a file."""
        return re.sub(r"[^\w.-]+", "-", self.source).strip("-.")[:80] or "data"

    @property
    def streamed(self) -> bool:
        """Whether the training examples are read while training."""
        return not isinstance(self.train, Sequence)

    @property
    def train_count(self) -> int | None:
        """Number of training examples, None for a stream."""
        return len(self.train) if isinstance(self.train, Sequence) else None

    def parts(self) -> dict[str, Sequence[Example] | Iterable[Example]]:
        """All examples by the part they are in; a part may be empty, and the training part a stream."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def select(self, which: Choice) -> Sequence[Example] | Iterable[Example]:
        """The examples of one part, those held out (validation and test), or all.

        Raises:
            UsageError: It is none of these words.
        """
        if which not in get_args(Choice):
            raise UsageError(f"split must be one of {', '.join(get_args(Choice))}, got {quoted(which)}.")
        if which not in ("held-out", "all"):
            return self.parts()[which]
        held_out = [*self.validation, *self.test]
        return held_out if which == "held-out" else list(chain(self.train, held_out, self.shared))

    @property
    def kind(self) -> Kind:
        """What the examples teach. Of a stream the first row is looked at, where there is no validation part.

        Raises:
            DataError: Both, or there are no examples.
        """
        known = [e for part in self.parts().values() if isinstance(part, Sequence) for e in part]
        counts = Counter(kind_of(example) for example in known or islice(self.train, 1))
        return require_one_kind(self.source, counts)

    def require_kind(self, wanted: Kind, way_out: str = "") -> "DataSplits":
        """Return the same when it is of this kind, or when all examples have prompts of their own.

        Args:
            wanted: What is needed.
            way_out: What to do, where it is not what ``lorax-vlm train`` would be told.

        Raises:
            DataError: It is of the other, or of both.
        """
        sides = [part for part in self.parts().values() if isinstance(part, Sequence)]
        if all(example.prompt for side in sides for example in side) and any(sides):
            return self  # each says itself how the model is to be asked
        found = self.kind
        if found == wanted:
            return self
        rows = f" ({self.row_count} rows)" if self.row_count else ""
        raise DataError(self.source, [f"it holds {found}{rows}, {_NEEDS[wanted]}"], way_out or _WAY_OUT[wanted])

    @property
    def row_count(self) -> int | None:
        """Number of all examples, None for a stream."""
        return None if self.train_count is None else self.train_count + len(self.validation) + len(self.test)

    def require_trainable(self) -> "DataSplits":
        """Return the same when there is something to train on and something to validate on.

        Raises:
            DataError: One side is empty.
        """
        if self.train_count != 0 and self.validation:
            return self
        facts = f"{self.train_count} training and {len(self.validation)} validation examples"
        facts += f" ({len(self.test)} test)" if self.test else ""
        facts += "; both need at least one"
        if self.duplicates:
            facts += f". {self.duplicates} training examples show images of the validation or test examples"
        problems = [*self.skipped[:_SHOWN], facts]
        hint = "Training needs two different images at least, evaluating needs one."
        if groups := {example.group for example in self.validation if example.group}:
            hint = f"--group-by keeps groups on one side, and there are {len(groups)}; {hint}"
        raise DataError(self.source, problems, hint)

    def identity(self) -> dict[str, Any]:
        """What adapters remember of their data: what it is called, how many, and a digest of all that is in it.

        The digest is over the content of images and all texts, part by part, so it is the same however and from
        wherever the data were read. A stream has none.

        Raises:
            ImageError: An image cannot be read.
        """
        counts: dict[str, Any] = {"train": self.train_count, "validation": len(self.validation)}
        if self.test:
            counts["test"] = len(self.test)
        return {"source": self.source, **counts, "sha256": None if self.streamed else self._content_digest()}

    def content(self) -> dict[str, Any]:
        """What is equal for equal data, however they are called; a stream is known by its name only.

        Raises:
            ImageError: An image cannot be read.
        """
        identity = self.identity()
        return identity if self.streamed else {key: value for key, value in identity.items() if key != "source"}

    def _content_digest(self) -> str:
        content = hashlib.sha256()
        for part, examples in self.parts().items():
            for e in examples:
                row = [part, e.image_digest(), e.prompt, e.question, e.target, *e.answers]
                content.update(json.dumps(row).encode() + b"\n")
        return content.hexdigest()

    def first(self, count: int) -> list[Example]:
        """The first training examples with different images."""
        found: dict[str, Example] = {}
        for example in islice(self.train, 100 * count):
            found.setdefault(example.image_key, example)
            if len(found) == count:
                break
        return list(found.values())

    def with_prompt(self, template: str) -> "DataSplits":
        """The same examples, with a prompt where they have none of their own.

        Args:
            template: ``{question}`` in it stands for the example's question.

        Raises:
            DataError: The template asks a question, and an example has none.
        """
        if not template:
            return self
        prompted = partial(_prompted, template=template, source=self.source)
        validation, test = [*map(prompted, self.validation)], [*map(prompted, self.test)]
        sides = [*map(prompted, self.train)] if isinstance(self.train, Sequence) else MappedStream(self.train, prompted)
        return replace(self, train=sides, validation=validation, test=test, shared=[*map(prompted, self.shared)])

    @property
    def left_out(self) -> list[Problem]:
        """Every row that was left out, and why."""
        return [*self.skipped, *self.unlearnable]

    def left_out_reasons(self) -> list[str]:
        """How many rows were left out, by what is the matter with them; as the subject of a sentence."""
        reasons = ("malformed rows", self.skipped), ("examples whose answer the base cannot give", self.unlearnable)
        return [f"{len(problems):,} {what}" for what, problems in reasons if problems]

    def write_left_out(self, path: str | Path) -> Path:
        """Write the rows that were left out, one JSON object a line: place, field, value, reason, what would be right.

        Raises:
            PathError: The file cannot be written.
        """
        return write_problems(self.left_out, path)

    def summary(self) -> str:
        """One line for people and records."""
        count = "streamed" if self.streamed else self.train_count
        test = f" (and {len(self.test)} test)" if self.test else ""
        skipped = "".join(f", {reason} left out" for reason in self.left_out_reasons())
        same = (
            f", {self.duplicates} training examples left out: their image is also held out" if self.duplicates else ""
        )
        return f"{self.source}: {count} training and {len(self.validation)} validation examples{test}{skipped}{same}"

    def describe(self) -> list[str]:
        """A few lines to look at before training starts."""
        lines = [self.summary(), *self.notes]
        lines += [f"left out: {problem}" for problem in self.left_out[:_SHOWN]]
        if len(self.left_out) > _SHOWN:
            lines.append(f"left out: {len(self.left_out) - _SHOWN} more rows")
        for label, part in (("training", self.train), ("validation", self.validation), ("test", self.test)):
            if not isinstance(part, Sequence) or not part:
                continue
            kinds = Counter(example.kind for example in part if example.kind)
            if kinds:
                lines.append(f"{label} by type: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(8)))
            targets = Counter(example.target for example in part)
            frequent = ", ".join(f"{target[:30]!r} {n}" for target, n in targets.most_common(3) if n > 1)
            lines.append(
                f"{label} targets: {len(targets)} different" + (f"; most frequent {frequent}" if frequent else "")
            )
        if 0 < len(self.validation) < _FEW and self.train:
            more = "" if self.held_out is None else f"; more than {percent(self.held_out, 0)} may be held out"
            lines.append(f"{len(self.validation)} validation examples choose the best step: few to go by{more}")
        known = [part for part in self.parts().values() if isinstance(part, Sequence)]
        if repeated := _repeated(example for part in known for example in part):
            lines.append(f"{repeated} rows say of an image what another row says of it already")
        if contradicted := _contradicted(example for part in known for example in part):
            lines.append(f"{contradicted} questions about an image have different answers in different rows")
        first = next((example for part in self.parts().values() for example in part), None)
        if first is not None:
            lines.append(f"first: {first.name}: {first.prompt!r} -> {first.target!r}")
        return lines


def _repeated(examples: Iterable[Example]) -> int:
    """Rows with image, question and target of another one, of those whose image was looked at when they were read."""
    rows = [(example.digest, example.question, example.target) for example in examples if example.digest]
    return len(rows) - len(set(rows))


def _contradicted(examples: Iterable[Example]) -> int:
    """Questions about one image to which rows give different answers, of images that were looked at."""
    answers: dict[tuple[str, str], set[str]] = {}
    for example in examples:
        if example.digest and example.question:
            answers.setdefault((example.digest, example.question), set()).add(example.target)
    return sum(len(different) > 1 for different in answers.values())


def kind_of(example: Example) -> Kind:
    """Whether it teaches an answer to a question, or a caption."""
    return "questions" if example.question else "captions"


def require_one_kind(source: str, counts: Mapping[Kind, int]) -> Kind:
    """The kind of all examples.

    Raises:
        DataError: There are both, or none.
    """
    present = [kind for kind, count in counts.items() if count]
    if len(present) == 1:
        return present[0]
    if not present:
        raise DataError(source, ["it has no examples"])
    mixed = " and ".join(f"{kind} ({counts[kind]} rows)" for kind in ("captions", "questions"))
    raise DataError(source, [f"it holds {mixed}; an adapter learns one of them"], _SEPARATE)


_NEEDS = {"questions": "--task needs questions", "captions": "a style needs captions"}
_WAY_OUT = {
    "questions": "Leave --task out to train a style.",
    "captions": "Train them as a skill: give --task NAME instead of a style.",
}
_SEPARATE = (
    "Put them into two folders or files: questions are trained with --task NAME, captions without --task. Or read one "
    "of them and leave the other rows out: --columns caption=caption, or --columns question=question,answer=answer, "
    "with --skip-bad-rows."
)


def _prompted(example: Example, template: str, source: str) -> Example:
    if example.prompt:
        return example
    if "{question}" in template and not example.question:
        raise DataError(source, [f"{example.name} has no question, and the prompt {template!r} asks one"], _SEPARATE)
    return replace(example, prompt=template.replace("{question}", example.question))


@dataclass(frozen=True)
class MappedStream(Iterable[Example]):
    """A stream of examples, each changed; it can be read again from the start."""

    source: Iterable[Example]
    change: Callable[[Example], Example]

    def __iter__(self) -> Iterator[Example]:
        return map(self.change, self.source)

    @property
    def left_out(self) -> int:
        """Examples of the last reading that were passed over because their image is held out."""
        return int(getattr(self.source, "left_out", 0))

    @property
    def problems(self) -> Sequence[Problem]:
        """Malformed rows of all readings that were left out on request."""
        return tuple(getattr(self.source, "problems", ()))
