"""Which examples a base can learn: too long texts, and answers that a classifier cannot give, are listed."""

import dataclasses
import functools
from collections.abc import Sequence

from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.problems import Problem
from lorax_vlm.errors import DataError, ExampleError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.base import Family, LabelPlan


def require_fitting(family: Family, splits: DataSplits, *, skip_bad_rows: bool) -> DataSplits:
    """The examples whose texts fit the model; those of a stream are looked at when they come.

    Raises:
        DataError: Some do not, and none may be left out; all are listed.
    """
    problems: list[Problem] = []

    @functools.cache
    def why_not(prompt: str, target: str, answers: tuple[str, ...]) -> str:
        try:
            family.check_example(prompt, target, answers, "")
        except ExampleError as error:
            return error.reason
        return ""

    def fits(example: Example) -> bool:
        reason = why_not(example.prompt, example.target, tuple(example.answers))  # data sets repeat their questions
        if reason:
            problems.append(Problem(example.name, reason))
        return not reason

    parts = {
        name: [example for example in part if fits(example)]
        for name, part in splits.parts().items()
        if isinstance(part, Sequence)
    }
    if not problems:
        return splits
    if not skip_bad_rows:
        raise DataError(splits.source, problems, "Shorten these texts, or leave the rows out with --skip-bad-rows.")
    if emptied := [name for name, part in splits.parts().items() if part and not parts.get(name, part)]:
        raise DataError(splits.source, problems, f"Without them no {emptied[0]} example is left: shorten these texts.")
    return dataclasses.replace(splits, **parts, skipped=(*splits.skipped, *problems))  # type: ignore[arg-type]


def fit_to_labels(family: Family, splits: DataSplits) -> tuple[DataSplits, LabelPlan | None]:
    """Examples whose answers a classifier can give, and the set of answers it needs; the others are listed.

    A family that writes can give any: all of them, and None.

    Raises:
        DataError: No example is left on one side.
    """
    if not family.labels:
        return splits, None
    train = list(splits.train)  # of a stream all of it: which answers there are must be known before
    skipped = [*splits.skipped, *getattr(splits.train, "problems", ())]
    plan = family.plan_labels([example.answers or (example.target,) for example in train])
    assert plan is not None
    grown = family.with_labels(plan.labels)
    lost: list[Problem] = []

    def answerable(part: str, examples: Sequence[Example]) -> list[Example]:
        known = [grown.can_answer(example.answers or (example.target,)) for example in examples]
        lost.extend(_unlearnable(part, e) for e, is_known in zip(examples, known, strict=True) if not is_known)
        return [example for example, is_known in zip(examples, known, strict=True) if is_known]

    train, validation = answerable("training", train), answerable("validation", splits.validation)
    if not train or not validation:
        raise DataError(splits.source, [plan.summary(), "no training or no validation example has a known answer"])
    return dataclasses.replace(splits, train=train, validation=validation, skipped=skipped, unlearnable=lost), plan


def _unlearnable(part: str, example: Example) -> Problem:
    reason = f"the {part} example's answer {quoted(example.target)} is none that the classifier can give"
    wanted = "an answer of the checkpoint, or one that at least two training examples have"
    return Problem(example.name, reason, "answer", quoted(example.target), wanted)
