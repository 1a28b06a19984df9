"""What a transfer tries, and how good each attempt is on the target base."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.adapters.factors import Updates
from lorax_vlm.asking import Ask
from lorax_vlm.data.examples import Example
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.exchange.report import Scored
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.exchange.transfer_data import Judge, judge_by_target, score_texts
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.types import GenerationSettings, Interval


@dataclass(frozen=True)
class Candidate:
    """An adapter folder for the target, and what came of it."""

    scored: Scored
    folder: Path
    labels: tuple[str, ...] = ()
    steps: int = 0
    training_s: float = 0.0
    coverage: str = ""


class Bench:
    """Asks the target base the development questions, with whatever adapter folder it is given."""

    def __init__(
        self,
        engine: BaseEngine,
        ask: Ask,
        examples: Sequence[Example],
        judge: Judge,
        run_dir: Path,
    ) -> None:
        self.engine, self.run_dir, self.ask = engine, run_dir, ask
        self._examples, self._judge = examples, judge
        self.seconds = 0.0

    def score(self, name: str, folder: Path | None = None, labels: Sequence[str] = ()) -> Scored:
        """Of the target alone, or with an adapter."""
        texts = self._ask(self._examples, self.ask.settings, folder, labels)
        return score_texts(name, self._judge, self._examples, texts)

    def score_others(self, examples: Sequence[Example], folder: Path | None, labels: Sequence[str] = ()) -> Interval:
        """How right it is about other tasks, asked and decoded as usual for the base."""
        entry = self.engine.entry
        settings = entry.answer_settings if examples[0].question else entry.caption_settings
        texts = self._ask(examples, settings, folder, labels)
        return score_texts("others", judge_by_target, examples, texts).mean

    def _ask(
        self, examples: Sequence[Example], settings: GenerationSettings, folder: Path | None, labels: Sequence[str]
    ) -> list[str]:
        start = time.monotonic()
        if folder is None:
            texts = answer(self.engine, None, examples, settings)
        else:
            with self.engine.trial(folder, labels) as trial:
                texts = answer(self.engine, trial, examples, settings, self.ask.template)
        self.seconds += time.monotonic() - start
        return texts

    def write(self, name: str, updates: Updates) -> Path:
        """A folder with some updates."""
        return write_updates(self.run_dir / name.replace(" ", "-"), updates, self.engine.entry.identity)
