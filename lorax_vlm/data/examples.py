"""Training examples, whatever they come from: an image, an optional prompt, and the text to learn."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from lorax_vlm.answers import most_frequent_answer
from lorax_vlm.data.images import ImageSource, load_image
from lorax_vlm.data.scene_questions import QUESTION_TYPES
from lorax_vlm.data.scenes import iterate_scenes, make_scene
from lorax_vlm.errors import UsageError

CAPTION_SCENES, QUESTION_SCENES = 3200, 6400
"""Training scenes for a caption style, and for a skill of answering questions."""
GENERAL = "general"
"""The task that takes questions of every type."""


class _SameObject:
    """An object as a key, by what it is, not by what it equals; kept, so that no other one can get its address."""

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SameObject) and self.kept is other.kept

    def __hash__(self) -> int:
        return id(self.kept)


@dataclass(frozen=True)
class Example:
    """One image with the text to learn from it."""

    image: ImageSource | Callable[[], Image.Image]
    """Anything ``load_image`` reads, or a function that draws it."""
    target: str
    name: str
    """How errors and listings call it, such as ``metadata.jsonl:12``."""
    prompt: str = ""
    question: str = ""
    """The question alone; the prompt is made of it by the base's template."""
    answers: tuple[str, ...] = ()
    """What all annotators said, where that is known; ``target`` is the most frequent of them."""
    kind: str = ""
    """Type of the question, such as ``counting``; results are given by it."""

    @property
    def image_key(self) -> Hashable:
        """Equal for two examples only if they show one image; it holds what it compares, so it never goes stale."""
        if isinstance(self.image, str | Path):
            return str(self.image)
        if isinstance(self.image, bytes):
            return hashlib.sha256(self.image).digest()
        if isinstance(self.image, partial):
            return (self.image.func, self.image.args)
        return _SameObject(self.image)

    def open_image(self) -> Image.Image:
        """The image, RGB.

        Raises:
            ImageError: It cannot be read.
        """
        return self.image() if callable(self.image) else load_image(self.image)


def answered(
    image: ImageSource | Callable[[], Image.Image], question: str, answers: Sequence[str], name: str, kind: str = ""
) -> Example:
    """An example of visual question answering; it is trained on the most frequent answer."""
    target = most_frequent_answer(answers)
    return Example(image, target, name, question=question, answers=tuple(answers), kind=kind)


def asked_examples(
    images: Sequence[ImageSource],
    questions: Sequence[str],
    answers: Sequence[str | Sequence[str]] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Example]:
    """Questions given side by side, with what is known of their answers and types.

    Raises:
        UsageError: They are not equally many, or none.
        ImageError: An image cannot be read.
    """
    counts = {len(part) for part in (images, questions, answers, kinds) if part is not None}
    if len(counts) != 1 or not questions:
        raise UsageError(f"Images, questions, answers and types must be equally many and some, got {counts}.")
    known = [[given] if isinstance(given, str) else list(given) for given in answers or [""] * len(questions)]
    return [
        Example(load_image(image), given[0], f"question {i}", question=question, answers=tuple(given), kind=kind)
        for i, (image, question, given, kind) in enumerate(
            zip(images, questions, known, kinds or [""] * len(questions), strict=True)
        )
    ]


@dataclass(frozen=True)
class DataSplits:
    """Training and validation examples with a name for both."""

    train: Sequence[Example] | Iterable[Example]
    """A stream (without a length) when the set is read as it is trained on."""
    validation: Sequence[Example]
    source: str
    skipped: Sequence[str] = ()
    """Malformed rows that were left out on request, as ``file:line: reason``."""
    duplicates: int = 0
    """Training examples left out because their image is also in the validation examples."""

    @property
    def streamed(self) -> bool:
        """Whether the training examples are read while training."""
        return not isinstance(self.train, Sequence)

    @property
    def train_count(self) -> int | None:
        """Number of training examples, None for a stream."""
        return len(self.train) if isinstance(self.train, Sequence) else None

    def identity(self) -> dict[str, Any]:
        """What adapters remember of their data: where from, how many, and a digest of all names and texts.

        Images are named, not read; a stream has no digest.
        """
        digest = None
        if isinstance(self.train, Sequence):
            rows = [(e.name, e.prompt, e.question, e.target, e.answers) for e in (*self.train, *self.validation)]
            digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        counts = {"train": self.train_count, "validation": len(self.validation)}
        return {"source": self.source, **counts, "sha256": digest}

    def first(self, count: int) -> list[Example]:
        """The first training examples with different images."""
        found: dict[str, Example] = {}
        for example in islice(self.train, 100 * count):
            key = str(example.image) if isinstance(example.image, str | Path) else example.name
            found.setdefault(key, example)
            if len(found) == count:
                break
        return list(found.values())

    def with_prompt(self, template: str) -> "DataSplits":
        """The same examples, with a prompt where they have none of their own.

        Args:
            template: ``{question}`` in it stands for the example's question.
        """
        if not template:
            return self
        validation = [_prompted(example, template) for example in self.validation]
        if isinstance(self.train, Sequence):
            return replace(self, train=[_prompted(e, template) for e in self.train], validation=validation)
        return replace(
            self, train=MappedStream(self.train, partial(_prompted, template=template)), validation=validation
        )

    def summary(self) -> str:
        """One line for people and records."""
        count = "streamed" if self.streamed else self.train_count
        skipped = f", {len(self.skipped)} malformed rows left out" if self.skipped else ""
        same = f", {self.duplicates} of validation images left out of training" if self.duplicates else ""
        return f"{self.source}: {count} training and {len(self.validation)} validation examples{skipped}{same}"

    def describe(self) -> list[str]:
        """A few lines to look at before training starts."""
        lines = [self.summary()]
        for label, part in (("training", self.train), ("validation", self.validation)):
            if not isinstance(part, Sequence):
                continue
            kinds = Counter(example.kind for example in part if example.kind)
            if kinds:
                lines.append(f"{label} by type: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common(8)))
            targets = Counter(example.target for example in part)
            frequent = ", ".join(f"{target[:30]!r} {n}" for target, n in targets.most_common(3) if n > 1)
            lines.append(
                f"{label} targets: {len(targets)} different" + (f"; most frequent {frequent}" if frequent else "")
            )
        first = next(iter(self.train))
        lines.append(f"first: {first.name}: {first.prompt!r} -> {first.target!r}")
        return lines


def _prompted(example: Example, template: str) -> Example:
    return example if example.prompt else replace(example, prompt=template.replace("{question}", example.question))


@dataclass(frozen=True)
class MappedStream(Iterable[Example]):
    """A stream of examples, each changed; it can be read again from the start."""

    source: Iterable[Example]
    change: Callable[[Example], Example]

    def __iter__(self) -> Iterator[Example]:
        return map(self.change, self.source)


def draw_scene_image(seed: int) -> Image.Image:
    """The image of a scene, not kept in memory."""
    return make_scene(seed).image


def scene_captions(style: str, split: str, count: int, start: int = 0) -> list[Example]:
    """Captions of one style over scenes of a split.

    Raises:
        UsageError: The style or the split is unknown.
    """
    return [
        Example(partial(draw_scene_image, scene.seed), scene.caption(style), f"scene {scene.seed}")
        for scene in iterate_scenes(split, count, start)
    ]


def scene_caption_splits(style: str, train_count: int = CAPTION_SCENES, validation_count: int = 96) -> DataSplits:
    """Training and validation scenes for a caption style."""
    return DataSplits(
        scene_captions(style, "train", train_count),
        scene_captions(style, "validation", validation_count),
        f"miniature scenes, style {style!r}",
    )


def require_task(task: str) -> str:
    """Return ``task`` when the scene world has questions for it.

    Raises:
        UsageError: It is none of ``QUESTION_TYPES`` and not ``general``.
    """
    if task not in (*QUESTION_TYPES, GENERAL):
        raise UsageError(f"Unknown task {task!r}. Known: {GENERAL}, {', '.join(QUESTION_TYPES)}.")
    return task


def scene_questions(task: str, split: str, count: int, *, per_scene: int | None = 1, start: int = 0) -> list[Example]:
    """Questions of one type over scenes of a split; of every type for ``general``.

    Args:
        task: One of ``QUESTION_TYPES``, or ``general``.
        split: ``train``, ``validation`` or ``test``.
        count: Number of scenes.
        per_scene: Questions drawn for each scene; None takes all. A scene without such a question has none.
        start: Number of scenes to pass over.

    Raises:
        UsageError: The task or the split is unknown.
    """
    require_task(task)
    examples = []
    for scene in iterate_scenes(split, count, start):
        asked = [row for row in scene.questions() if task in (row[0], GENERAL)]
        if per_scene is not None and len(asked) > per_scene:
            asked = random.Random(f"asked-{task}-{scene.seed}").sample(asked, per_scene)
        image = partial(draw_scene_image, scene.seed)
        examples += [answered(image, q, [a], f"scene {scene.seed}", kind) for kind, q, a in asked]
    return examples


def scene_question_splits(task: str, train_count: int = QUESTION_SCENES, validation_count: int = 150) -> DataSplits:
    """Training (all questions of each scene) and validation scenes (one each) for a task."""
    return DataSplits(
        scene_questions(task, "train", train_count, per_scene=None),
        scene_questions(task, "validation", validation_count),
        f"miniature scenes, task {task!r}",
    )
