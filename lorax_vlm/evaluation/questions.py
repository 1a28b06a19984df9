"""Scoring answers to questions whose answers are known, in total and by type of question."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from lorax_vlm.answers import exact_match, vqa_accuracy
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.bootstrap import mean_interval, paired_difference
from lorax_vlm.evaluation.protocol import describe_protocol
from lorax_vlm.types import Answer, AnswerRecord, GenerationSettings, Interval, VQAReport

Ask = Callable[[Sequence[Any], Sequence[str]], Sequence[Answer | LoraxError]]
"""Answers one question per image; the error of a bad row stands in its place."""

_GREY = (127, 127, 127)
VQA_ACCURACY, EXACT_MATCH = "vqa accuracy", "exact match"


def evaluate_questions(
    ask: Ask,
    examples: Sequence[Example],
    *,
    ablations: bool = False,
    source: str,
    base: str,
    adapter: str | None,
    settings: GenerationSettings,
) -> VQAReport:
    """Ask every example's question and score the answers.

    Args:
        ask: The base or an adapter.
        examples: Questions with known answers.
        ablations: Ask again with grey images and with each other's: an adapter whose accuracy stays the same answers
            from the question alone.
        source: What the examples are.
        base: Name of the base.
        adapter: Name of the adapter, None for the base.
        settings: How answers are decoded.

    Raises:
        UsageError: There are no examples.
    """
    metric = choose_metric(examples)
    images = [_image_or_error(example) for example in examples]
    questions = [example.question for example in examples]
    start = time.monotonic()
    answers = _ask_readable(ask, images, questions)
    time_s = time.monotonic() - start
    ablated: dict[str, float] = {}
    if ablations:
        grey = [Image.new("RGB", i.size, _GREY) if isinstance(i, Image.Image) else i for i in images]
        for label, others in (("blank", grey), ("shuffled", [*images[1:], images[0]])):
            given = _ask_readable(ask, others, questions)
            ablated[label] = mean_score(score_answers(given, examples, metric))
    records = score_answers(answers, examples, metric)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for record in records:
        by_kind[record.kind or "all"].append(record.score)
    return VQAReport(
        adapter=adapter,
        base=base,
        source=source,
        metric=metric,
        accuracy=mean_interval([record.score for record in records]),
        by_kind={kind: mean_interval(scores) for kind, scores in sorted(by_kind.items())},
        records=records,
        time_s=time_s,
        protocol=describe_protocol(source, settings) | {"questions": len(records), "metric": metric},
        **ablated,
    )


def _image_or_error(example: Example) -> Image.Image | LoraxError:
    try:
        return example.open_image()
    except LoraxError as error:
        return error


def _ask_readable(
    ask: Ask, images: Sequence[Image.Image | LoraxError], questions: Sequence[str]
) -> list[Answer | LoraxError]:
    readable = {index: image for index, image in enumerate(images) if isinstance(image, Image.Image)}
    answers = ask(list(readable.values()), [questions[index] for index in readable])
    results: list[Any] = list(images)
    for index, answer in zip(readable, answers, strict=True):
        results[index] = answer
    return results


def compare_reports(first: VQAReport, second: VQAReport) -> Interval:
    """How much more accurate the second report is, with a paired bootstrap interval.

    Raises:
        UsageError: They were measured on different questions or by different metrics.
    """
    asked = [[(r.example, r.question) for r in report.records] for report in (first, second)]
    if first.metric != second.metric or asked[0] != asked[1]:
        raise UsageError("Only reports on the same questions, by the same metric, can be compared.")
    return paired_difference([r.score for r in first.records], [r.score for r in second.records])


def choose_metric(examples: Sequence[Example]) -> str:
    """VQA accuracy when every question has several annotators, else exact match."""
    return VQA_ACCURACY if all(len(example.answers) > 1 for example in examples) else EXACT_MATCH


def score_answers(
    answers: Sequence[Answer | Exception], examples: Sequence[Example], metric: str
) -> tuple[AnswerRecord, ...]:
    """One record per question; a question that could not be asked scores 0 and keeps its error.

    Raises:
        UsageError: There are no examples, or not one answer for each.
    """
    if not examples:
        raise UsageError("At least one question is needed.")
    records = []
    for answer, example in zip(answers, examples, strict=True):
        annotators = example.answers or (example.target,)
        if isinstance(answer, Exception):
            records.append(AnswerRecord(example.name, example.kind, example.question, "", annotators, 0.0, str(answer)))
            continue
        score = vqa_accuracy(answer, annotators) if metric == VQA_ACCURACY else float(exact_match(answer, annotators))
        records.append(AnswerRecord(example.name, example.kind, example.question, str(answer), annotators, score))
    return tuple(records)


def mean_score(records: Sequence[AnswerRecord]) -> float:
    """Accuracy of records."""
    return sum(record.score for record in records) / len(records)
