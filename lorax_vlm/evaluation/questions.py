"""Scoring answers to questions whose answers are known, in total and by type of question."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

from lorax_vlm.answers import exact_match, vqa_accuracy
from lorax_vlm.data.examples import Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.errors import LoraxError, RowFailed, UsageError
from lorax_vlm.evaluation.ablation import ablate
from lorax_vlm.evaluation.intervals import mean_interval, numbers_of, paired_difference
from lorax_vlm.evaluation.opening import Source, sources_in_turn
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.results import AnswerRecord, VQAReport
from lorax_vlm.types import Interval, ModelText, require_flag

Ask = Callable[[Sequence[ImageSource], Sequence[str]], Sequence[ModelText | LoraxError]]
"""Answers one question per image; the error of a bad row stands in its place."""

VQA_ACCURACY, EXACT_MATCH = "vqa accuracy", "exact match"
FEWEST_ANNOTATORS = 4
"""Of VQA accuracy: of fewer its rule gives at most 2/3 to an answer on which all agree."""


def evaluate_questions(
    ask: Ask,
    examples: Sequence[Example],
    subject: Subject,
    *,
    source: str,
    ablations: bool = False,
    seed: int = 0,
) -> VQAReport:
    """Ask every example's question and score the answers.

    Args:
        ask: The base or an adapter. It is given what names the images, and opens them with its batches; images that
            only a function gives are opened here, a few at a time. So memory does not grow with the questions.
        examples: Questions with known answers.
        subject: Is asked.
        source: What the examples are.
        ablations: Ask again with grey images and with other ones; see ``evaluation/ablation.py``.
        seed: Of the draw of the other images.

    Raises:
        UsageError: There are no examples, or some have no question.
    """
    require_flag("ablations", ablations)
    asked_nothing = [example.name for example in examples if not example.question]
    if asked_nothing:
        raise UsageError(
            f"{len(asked_nothing)} of {len(examples)} examples have no question, the first: {asked_nothing[0]}. These "
            "are captions, which an adapter of a caption style is compared with."
        )
    images = image_numbers(examples)
    answers, seconds = ask_in_turn(ask, examples, images, [example.question for example in examples])
    records = score_answers(answers, examples, images=images)
    shares = shares_by_metric(records)
    metric = next(iter(shares))

    def again(rows: Sequence[int], pictured: Sequence[Example], shown: Sequence[int]) -> Sequence[AnswerRecord]:
        given, _ = ask_in_turn(ask, pictured, shown, [examples[row].question for row in rows])
        return score_answers(given, [examples[row] for row in rows], images=[images[row] for row in rows])

    ablated = ablate(again, examples, records, metric, seed) if ablations else {}
    counts = {name: share.count for name, share in shares.items()}
    return VQAReport(
        adapter=subject.adapter,
        base=subject.base,
        source=source,
        metric=metric,
        accuracy=shares[metric],
        by_kind=_shares_by_kind(records, metric),
        by_metric=shares,
        records=records,
        time_s=seconds,
        protocol=subject.protocol(source)
        | {"questions": len(records), "images": len(set(images)), "metric": metric if len(counts) == 1 else counts},
        **ablated,
    )


def image_numbers(examples: Sequence[Example]) -> list[int]:
    """A number for each example's image, equal for equal images; an image that cannot be read is like no other."""
    return numbers_of(map(_image_of, examples))


def _image_of(example: Example) -> Hashable:
    try:
        return example.image_key
    except LoraxError:  # asking about it will say what is wrong with it
        return "unreadable", example.name


def ask_in_turn(
    ask: Ask, pictured: Sequence[Example], images: Sequence[int], questions: Sequence[str]
) -> tuple[list[ModelText | LoraxError], float]:
    """Ask each question about the image of the example beside it; answers in order, and how long it took.

    Args:
        ask: The base or an adapter.
        pictured: Examples whose images are shown.
        images: Their numbers, equal for equal images.
        questions: One for each.
    """
    answers: dict[int, ModelText | LoraxError] = {}
    start = time.monotonic()
    for chunk in sources_in_turn(pictured, images):
        answers |= _ask_chunk(ask, chunk, questions)
    return [answers[row] for row in range(len(questions))], time.monotonic() - start


def _ask_chunk(
    ask: Ask, chunk: Sequence[tuple[int, Source]], questions: Sequence[str]
) -> dict[int, ModelText | LoraxError]:
    answers: dict[int, ModelText | LoraxError] = {}
    rows: list[int] = []
    sources: list[ImageSource] = []
    for row, source in chunk:
        if isinstance(source, LoraxError):
            answers[row] = source
        else:
            rows.append(row)
            sources.append(source)
    if rows:
        answers |= dict(zip(rows, ask(sources, [questions[row] for row in rows]), strict=True))
    return answers


def compare_reports(first: VQAReport, second: VQAReport, metric: str | None = None) -> Interval:
    """How much more accurate the second report is, with a paired interval, on the questions of one metric.

    Args:
        first: Such as the base's.
        second: On the same questions.
        metric: None: that of the reports.

    Raises:
        UsageError: They were measured on different questions or by different metrics, or none by ``metric``.
    """
    metric = metric or first.metric
    asked = [[(r.example, r.question, r.metric) for r in report.records] for report in (first, second)]
    if first.metric != second.metric or asked[0] != asked[1]:
        raise UsageError("Only reports on the same questions, by the same metric, can be compared.")
    before, after = (with_metric(report.records, metric) for report in (first, second))
    if not before:
        raise UsageError(f"No question of these reports is judged by {metric!r}.")
    return paired_difference([r.score for r in before], [r.score for r in after], [r.unit for r in before])


def choose_metric(examples: Sequence[Example]) -> str:
    """The metric of most of the questions."""
    counts = Counter(_metric_of(example) for example in examples)
    return VQA_ACCURACY if counts[VQA_ACCURACY] >= counts[EXACT_MATCH] else EXACT_MATCH


def _metric_of(example: Example) -> str:
    """VQA accuracy where several annotators answered, else exact match with their most frequent answer."""
    return VQA_ACCURACY if len(example.answers) >= FEWEST_ANNOTATORS else EXACT_MATCH


def score_answers(
    answers: Sequence[ModelText | Exception],
    examples: Sequence[Example],
    *,
    images: Sequence[int] | None = None,
) -> tuple[AnswerRecord, ...]:
    """One record per question; a question that could not be asked scores 0 and keeps its error.

    Each question is judged by its own metric, whatever the others are judged by.

    Args:
        answers: What was said.
        examples: The questions.
        images: Of ``image_numbers``. None: they are found.

    Raises:
        UsageError: There are no examples, or not one answer for each.
    """
    if not examples or len(answers) != len(examples):
        raise UsageError(f"At least one question is needed, and an answer to each: {len(examples)}, {len(answers)}.")
    images = images if images is not None else image_numbers(examples)
    units = numbers_of(("group", e.group) if e.group else ("image", i) for e, i in zip(examples, images, strict=True))
    return tuple(_judged(*row) for row in zip(answers, examples, images, units, strict=True))


def _judged(answer: ModelText | Exception, example: Example, image: int, unit: int) -> AnswerRecord:
    annotators, metric = example.answers or (example.target,), _metric_of(example)
    said, error, bug, score = "", "", False, 0.0
    if isinstance(answer, Exception):
        error, bug = str(answer), isinstance(answer, RowFailed)
    else:
        said = str(answer)
        score = vqa_accuracy(said, annotators) if metric == VQA_ACCURACY else float(exact_match(said, annotators))
    return AnswerRecord(
        example.name, example.kind, example.question, said, annotators, score, error, metric, image, unit, bug
    )


def with_metric(records: Sequence[AnswerRecord], metric: str) -> tuple[AnswerRecord, ...]:
    """The records of questions that are judged by a metric."""
    return tuple(record for record in records if record.metric == metric)


def mean_score(records: Sequence[AnswerRecord]) -> float:
    """Mean score of records; they should be judged by one metric."""
    return sum(record.score for record in records) / len(records)


def accuracy_of(records: Sequence[AnswerRecord]) -> Interval:
    """Mean score of records of one metric, with its interval over images or groups."""
    return mean_interval([record.score for record in records], [record.unit for record in records])


def shares_by_metric(records: Sequence[AnswerRecord]) -> dict[str, Interval]:
    """Accuracy of the questions of each metric, that of most questions first."""
    counts = Counter(record.metric for record in records)
    order = sorted(counts, key=lambda metric: (-counts[metric], metric != VQA_ACCURACY))
    return {metric: accuracy_of(with_metric(records, metric)) for metric in order}


def _shares_by_kind(records: Sequence[AnswerRecord], metric: str) -> dict[str, Interval]:
    found: dict[str, list[AnswerRecord]] = defaultdict(list)
    for record in records:
        if record.kind:
            found[record.kind if record.metric == metric else f"{record.kind} ({record.metric})"].append(record)
    return {kind: accuracy_of(some) for kind, some in sorted(found.items())}
