"""Measuring answers to questions, and what they cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any, Self

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import ask_of
from lorax_vlm.data.examples import Example
from lorax_vlm.data.images import ImageSource
from lorax_vlm.data.world.skills import require_scenes, skill_examples
from lorax_vlm.errors import LoraxError, UsageError
from lorax_vlm.evaluation.cost import benchmark_questions
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.questions import Ask, evaluate_questions
from lorax_vlm.evaluation.results import BenchmarkRow, VQAReport
from lorax_vlm.evaluation.seen import Asked
from lorax_vlm.measuring.unseen import unseen_examples
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.requests import Request
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import Skill
from lorax_vlm.types import ModelText


@dataclass(frozen=True)
class Answerer:
    """A base or an adapter of it, as it is called in a report."""

    name: str | None = None
    """None: the base."""
    stored: StoredAdapter | None = None
    resolved: str = ""
    """Its full name, with a version where one was asked for; what it has seen goes by it."""

    @classmethod
    def of(cls, store: AdapterStore, base: str, name: str | None) -> Self:
        """The base, or an adapter by its name on it; see ``AdapterStore.resolve``."""
        return cls() if name is None else cls(name, store.find(name, base), store.resolve(name, base))

    @property
    def reference(self) -> str | None:
        """The very version that is measured."""
        return self.stored.reference if self.stored is not None else None


def built_in_questions(
    entry: CatalogEntry, skill: Skill | None, count: int, *, instead: str
) -> tuple[list[Example], str]:
    """Held-out questions of a miniature's scenes, and what they are.

    Args:
        entry: Of the base.
        skill: What is asked about.
        count: Of scenes.
        instead: The argument that gives other questions.

    Raises:
        UsageError: The base is none of the miniatures, or scenes do not ask for the skill.
    """
    if not entry.miniature or skill is None:
        raise UsageError(f"{entry.name} has no built-in test questions. Pass {instead}.")
    name = require_scenes(skill).name
    return skill_examples(skill, "test", count), f"scenes, {name}, {count} held out"


def unseen_by(who: Iterable[Answerer], examples: Sequence[Example], *, include_seen: bool = False) -> Asked:
    """The examples that none of them was trained on; see ``measuring.unseen``."""
    named = {one.resolved: one.stored for one in who if one.stored is not None}
    return unseen_examples(named, examples, include_seen=include_seen)


def measure_questions(
    engine: BaseEngine,
    who: Answerer,
    asked: Asked,
    *,
    source: str,
    ablations: bool = False,
    decoding: Mapping[str, Any] | None = None,
) -> VQAReport:
    """Measure an adapter, or the base, on questions with known answers.

    Args:
        engine: Of the base.
        who: Is asked.
        asked: The questions, and what it has seen of them.
        source: What they are, for the report.
        ablations: Ask again with grey images and with others; see ``evaluation.ablation``.
        decoding: Fields of ``GenerationSettings`` to change.
    """
    changes = dict(decoding or {})
    manifest = who.stored.manifest if who.stored is not None else None
    settings = ask_of(engine.entry, manifest, question=True).settings.replace(**changes)
    subject = Subject(engine.entry.name, who.name, settings)
    ask = _asker(engine, who, changes)
    report = evaluate_questions(ask, asked.examples, subject, source=source, ablations=ablations)
    return replaced(report, seen=asked.of(who.resolved or None))


def benchmark(
    bases: Bases,
    who: Mapping[str, Sequence[Answerer]],
    examples: Sequence[Example],
    *,
    judged: bool,
    alone: int,
    include_seen: bool,
) -> list[BenchmarkRow]:
    """Ask every base, and every adapter of it, the same questions.

    Args:
        bases: The door to the bases.
        who: Those to ask, by base.
        examples: The questions.
        judged: Whether their answers are known.
        alone: Questions that are asked one by one, for the latency.
        include_seen: Ask about images that one of them was trained on, too.

    Raises:
        UsageError: All images were trained on.
    """
    everybody = [one for answerers in who.values() for one in answerers]
    asked = unseen_by(everybody, examples, include_seen=include_seen)
    rows = []
    for model, answerers in who.items():
        with bases.use(model) as engine:
            for one in answerers:
                row = benchmark_questions(
                    _asker(engine, one, {}),
                    asked.examples,
                    engine.base.device,
                    model=engine.entry.name,
                    adapter=one.name,
                    judged=judged,
                    alone=alone,
                )
                rows.append(replaced(row, seen=asked.of(one.resolved or None)))
    return rows


def _asker(engine: BaseEngine, who: Answerer, decoding: Mapping[str, Any]) -> Ask:
    def ask(images: Sequence[ImageSource], questions: Sequence[str]) -> list[ModelText | LoraxError]:
        requests = [
            Request.about(image, question, who.reference, **decoding)
            for image, question in zip(images, questions, strict=True)
        ]
        return [result.text_or_error() for result in engine.generate(requests)]

    return ask
