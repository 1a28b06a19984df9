"""Examples from questions that are given side by side. No torch."""

from collections.abc import Sequence

from lorax_vlm.data.examples import Example, answered
from lorax_vlm.data.images import ImageSource
from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted


def asked_examples(
    images: Sequence[ImageSource],
    questions: Sequence[str],
    answers: Sequence[str | Sequence[str]] | None = None,
    kinds: Sequence[str] | None = None,
) -> list[Example]:
    """Questions given side by side, with what is known of their answers and types. Images are opened when asked about.

    Raises:
        UsageError: They are not equally many, or none; or a question has an empty list of answers.
    """
    for part in (images, questions, answers, kinds):
        if part is not None and (isinstance(part, str | bytes) or not hasattr(part, "__len__")):
            raise UsageError(f"Images, questions, answers and types are lists with an entry each; got {quoted(part)}.")
    said: Sequence[object] = answers if answers is not None else ()
    for answer in said:
        if isinstance(answer, bytes) or not isinstance(answer, Sequence):
            raise UsageError(f"An answer is a text, or a list of annotators' answers; got {quoted(answer)}.")
    counts = {len(part) for part in (images, questions, answers, kinds) if part is not None}
    if len(counts) != 1 or not questions:
        raise UsageError(f"Images, questions, answers and types must be equally many and some, got {counts}.")
    known = [[given] if isinstance(given, str) else list(given) for given in answers or [""] * len(questions)]
    silent = [i for i, given in enumerate(known) if not given]
    if silent:
        raise UsageError(f"Question {silent[0]} has an empty list of answers; leave answers out where none is known.")
    return [
        answered(image, question, given, f"question {i}", kind)
        for i, (image, question, given, kind) in enumerate(
            zip(images, questions, known, kinds or [""] * len(questions), strict=True)
        )
    ]


def require_examples(examples: object) -> None:
    """Raise ``UsageError`` unless they are a list of examples, which can be gone through more than once."""
    if not isinstance(examples, Sequence) or not all(isinstance(example, Example) for example in examples):
        raise UsageError(f"examples must be a list of Example, got {quoted(examples)}.")
