"""What an adapter says while it is trained: it is asked by the prompts that it is trained on, and decoded as later."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.opening import sources_in_turn
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import Row
from lorax_vlm.training.progress import Sample
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.types import Generated, GenerationSettings


def sampler(
    engine: BaseEngine, plan: AdapterPlan, settings: GenerationSettings
) -> Callable[[Path], Sequence[Sample]] | None:
    """Asks the adapter in a folder about the first validation examples of a plan; None where that is not wanted.

    Args:
        engine: Of the base.
        plan: What is trained, with the prompts of its examples.
        settings: How the adapter is decoded.
    """
    examples = list(itertools.islice(plan.data.validation, plan.config.samples))
    return partial(_samples, engine, plan.labels, settings, examples) if examples else None


def _samples(
    engine: BaseEngine,
    labels: Sequence[str],
    settings: GenerationSettings,
    examples: Sequence[Example],
    folder: Path,
) -> list[Sample]:
    samples: list[Sample] = []
    with engine.trial(folder, labels) as name:
        for chunk in sources_in_turn(examples, range(len(examples))):
            rows = [
                source if isinstance(source, LoraxError) else Row(source, name, examples[number].prompt, settings)
                for number, source in chunk
            ]
            answers = engine.answer(rows)
            samples += [_sample(examples[number], said) for (number, _), said in zip(chunk, answers, strict=True)]
    return samples


def _sample(example: Example, said: Generated | LoraxError) -> Sample:
    text, error = (said.text, "") if isinstance(said, Generated) else ("", str(said))
    return Sample(example.name, example.question, example.target, text, error)
