"""What an adapter says while it is trained: it is asked through the engine, as it would be once it is stored."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lorax_vlm.asking import Ask
from lorax_vlm.data.examples import Example
from lorax_vlm.errors import LoraxError
from lorax_vlm.evaluation.opening import sources_in_turn
from lorax_vlm.requests import Request
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.training.progress import Sample
from lorax_vlm.training.students import AdapterPlan


def sampler(engine: BaseEngine, plan: AdapterPlan, ask: Ask) -> Callable[[Path], Sequence[Sample]] | None:
    """Asks the adapter in a folder about the first validation examples of a plan; None where that is not wanted.

    Args:
        engine: Of the base.
        plan: What is trained.
        ask: How the adapter is asked.
    """
    examples = list(itertools.islice(plan.data.validation, plan.config.samples))
    return partial(_samples, engine, plan.labels, ask, examples) if examples else None


def _samples(
    engine: BaseEngine, labels: Sequence[str], ask: Ask, examples: Sequence[Example], folder: Path
) -> list[Sample]:
    usual = engine.ask(None, question=bool(examples[0].question)).settings
    own = {name: value for name, value in asdict(ask.settings).items() if value != getattr(usual, name)}
    samples: list[Sample] = []
    with engine.trial(folder, labels) as name:
        for chunk in sources_in_turn(examples, range(len(examples))):
            asked = [Request.about(source, examples[row].question or None, name, **own) for row, source in chunk]
            for (row, source), result in zip(chunk, engine.generate(asked), strict=True):
                error = source if isinstance(source, LoraxError) else result.error
                one = examples[row]
                samples.append(Sample(one.name, one.question, one.target, str(result.said or ""), str(error or "")))
    return samples
