"""What an adapter answers to images nobody labelled: the examples another base learns it from.

The teacher's words are the interface, so it does not matter which tokenizer, width or kind of model either side has.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lorax_vlm.asking import QUESTION_MARK, ask_of
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.opening import sources_in_turn
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import Row, all_good
from lorax_vlm.types import GenerationSettings

_HELD_OUT_SHARE = 0.1
DROPPED_SHARE = 0.1
"""Of the examples the teacher is least sure of; it is wrong there most often."""


@dataclass(frozen=True)
class TeacherAnswer:
    """What the teacher says to one example."""

    text: str
    confidence: float
    """See ``Family.confidences``."""


@dataclass(frozen=True)
class Lesson:
    """Examples with the teacher's answers as targets."""

    splits: DataSplits
    kept: int
    asked: int


def answer(
    engine: BaseEngine,
    name: str | None,
    examples: Sequence[Example],
    settings: GenerationSettings,
    template: str | None = None,
) -> list[str]:
    """What a base, or an adapter on it, answers to examples, whatever their targets.

    Args:
        engine: Of the base.
        name: Of the adapter, None for the plain base.
        examples: Images, with or without questions.
        settings: Decoding.
        template: Of the prompt; examples of the other kind are asked as the base is. None: the adapter's.
    """
    prompted = _prompts(engine, name, template)
    return [text for rows in _rows(name, examples, prompted, settings) for text in engine.say(rows)]


def _rows(
    name: str | None, examples: Sequence[Example], prompted: Callable[[Example], str], settings: GenerationSettings
) -> Iterator[list[Row]]:
    """What to ask about examples, some at a time: so many as have been drawn or fetched."""
    for chunk in sources_in_turn(examples, range(len(examples))):
        sources: list[ImageSource] = all_good(source for _, source in chunk)
        yield [
            Row(source, name, prompted(examples[number]), settings)
            for (number, _), source in zip(chunk, sources, strict=True)
        ]


def _prompts(engine: BaseEngine, name: str | None, template: str | None = None) -> Callable[[Example], str]:
    """What makes the prompts of a base or an adapter on it; see ``answer``."""
    attachment = engine.find(name)
    manifest = attachment.manifest if attachment is not None else None

    def prompt(example: Example) -> str:
        asked = bool(example.question)
        if template is not None and (QUESTION_MARK in template) == asked:
            return template.replace(QUESTION_MARK, example.question)
        own = manifest if template is None else None
        return ask_of(engine.entry, own, question=asked).prompt(example.question)

    return prompt


def ask_teacher(
    engine: BaseEngine, name: str, examples: Sequence[Example], settings: GenerationSettings
) -> list[TeacherAnswer]:
    """The adapter's greedy answers, each with how sure it is of them."""
    greedy, prompted = settings.replace(num_beams=1, temperature=None), _prompts(engine, name)
    answers: list[TeacherAnswer] = []
    for rows in _rows(name, examples, prompted, greedy):
        texts = engine.say(rows)
        answers += map(TeacherAnswer, texts, engine.confidences(rows, texts))
    return answers


def make_lesson(examples: Sequence[Example], answers: Sequence[TeacherAnswer], *, fewest_held_out: int = 1) -> Lesson:
    """Examples with the teacher's answers for targets, without those it is least sure of, and some held out.

    Those about the last images are held out, so that checkpoints are chosen by agreement with the teacher and no label
    is needed.

    Args:
        examples: That the teacher was asked.
        answers: To each.
        fewest_held_out: Hold out so many images, though no more than half of them, where the usual share is less.

    Raises:
        UsageError: The teacher said nothing, or something about one image only.
    """
    sure = sorted((a.confidence for a in answers if a.text.strip()), reverse=True)
    if not sure:
        raise UsageError("The teacher answered nothing to any example.")
    threshold = sure[max(0, round((1 - DROPPED_SHARE) * len(sure)) - 1)]
    kept = [
        replace(example, target=answer.text, answers=(answer.text,), prompt="", name=f"{example.name} (distilled)")
        for example, answer in zip(examples, answers, strict=True)
        if answer.text.strip() and answer.confidence >= threshold
    ]
    images = list(dict.fromkeys(example.image_digest() for example in kept))
    count = max(1, round(_HELD_OUT_SHARE * len(images)), min(fewest_held_out, len(images) // 2))
    held_out = set(images[-count:])
    train = [example for example in kept if example.image_digest() not in held_out]
    validation = [example for example in kept if example.image_digest() in held_out]
    if not train:
        raise UsageError(
            f"The source answered {len(kept)} examples about {len(images)} image{'' if len(images) == 1 else 's'}; it "
            "takes two images at least, to learn from one and to measure with the other."
        )
    splits = DataSplits(train, validation, f"{len(kept)} answers of the source")
    return Lesson(splits, len(kept), len(examples))
