"""Whoever wants to know is told how a run goes, alone and together; trackers are those of transformers."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import caption
from lorax_vlm.training import trainer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.progress import ProgressBar, Sample, listener
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter

SMALL = Recipe("small", 2, ("lm-qv",))
FEW = TrainConfig(max_steps=4, batch_size=4, eval_every=2, learning_rate=1e-3, patience=None)


class Notes:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def started(self, steps: Mapping[str, int], done: int) -> None:
        self.told.append(("started", (dict(steps), done)))

    def stepped(self, step: int, losses: Mapping[str, float]) -> None:
        self.told.append(("losses" if losses else "stepped", (step, sorted(losses)) if losses else step))

    def validated(self, step: int, losses: Mapping[str, float]) -> None:
        self.told.append(("validated", (step, sorted(losses))))
        self.last = dict(losses)

    def sampled(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        self.told.append(("sampled", (step, name, tuple(samples))))

    def stopped(self, name: str, step: int) -> None:
        self.told.append(("stopped", (name, step)))

    def finished(self) -> None:
        self.told.append(("finished", None))

    def of(self, kind: str) -> list[object]:
        return [what for found, what in self.told if found == kind]


def test_a_run_tells_every_step_and_every_validation(mini: LoadedModel, tmp_path: Path) -> None:
    notes = Notes()
    data = skill_splits(caption("concise"), 12, 4)
    result = train_adapter(mini, AdapterPlan("one", SMALL, data, FEW), tmp_path / "one", progress=notes)
    assert notes.told[-1] == ("finished", None)
    assert ("started", ({"one": 4}, 0)) in notes.told
    assert notes.of("stepped") == [1, 2, 3, 4]
    assert [step for step, names in notes.of("validated") if names == ["one"]][-2:] == [2, 4]  # type: ignore[misc]
    assert notes.of("losses"), "training losses, too"
    measured = [row["eval_loss"] for row in result.history if "eval_loss" in row]
    assert notes.last["one"] == measured[-1]


def test_a_joint_run_names_its_adapters(mini: LoadedModel, tmp_path: Path) -> None:
    notes = Notes()
    data = skill_splits(caption("concise"), 12, 4)
    plans = [
        AdapterPlan(name, SMALL, data, dataclasses.replace(FEW, max_steps=steps))
        for name, steps in (("a", 2), ("b", 4))
    ]
    train_adapters(mini, plans, tmp_path / "two", progress=notes)
    assert ("started", ({"a": 2, "b": 4}, 0)) in notes.told
    assert notes.of("stepped") == [1, 2, 3, 4]
    assert {name for _, names in notes.of("validated") for name in names} == {"a", "b"}  # type: ignore[misc, attr-defined]
    assert notes.told[-1] == ("finished", None)


def test_who_cannot_be_told_everything_is_refused_by_what_is_missing() -> None:
    class Former:
        def started(self, steps: Mapping[str, int], done: int) -> None: ...

        def stepped(self, step: int, losses: Mapping[str, float]) -> None: ...

        validated = stopped = finished = started

        sampled = None

    with pytest.raises(UsageError, match="has no sampled"):
        listener(Former())  # type: ignore[arg-type]
    assert listener(notes := Notes()) is notes


def test_what_a_listener_raises_ends_the_run_and_it_is_told_so(mini: LoadedModel, tmp_path: Path) -> None:
    class Stop(Notes):
        def validated(self, step: int, losses: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    notes = Stop()
    with pytest.raises(KeyboardInterrupt):
        train_adapter(
            mini, AdapterPlan("it", SMALL, skill_splits(caption("plain"), 8, 4), FEW), tmp_path / "it", progress=notes
        )
    assert notes.told[-1] == ("finished", None)


def test_trackers_are_those_that_are_installed(
    mini: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = skill_splits(caption("plain"), 8, 4)
    told = dataclasses.replace(FEW, report_to=["nobody"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="report_to: nobody is not installed"):
        train_adapter(mini, AdapterPlan("it", SMALL, data, told), tmp_path / "it", progress=False)
    assert not (tmp_path / "it").exists()
    assert told.to_dict() == FEW.to_dict(), "it decides nothing that is learnt"
    monkeypatch.setattr(trainer, "get_available_reporting_integrations", lambda: ["nobody"])
    trainer.require_trackers(told.report_to)
    assert trainer.make_arguments(mini, told, tmp_path).report_to == ["nobody"]


def test_samples_are_printed_as_they_are() -> None:
    """Markup, control characters and line ends of others stay text, on one line."""
    written = io.StringIO()
    bar = ProgressBar(Console(file=written, width=30))
    samples = [Sample("a.png", "", "red", "[bold]blue\u202e\n"), Sample("b.png", "what?", "two", "", "it is broken")]
    bar.sampled(50, "mine", samples)
    assert written.getvalue().splitlines() == [
        r"step 50, mine, a.png: '[bold]blue\u202e\n', expected 'red'",
        "step 50, mine, b.png 'what?': cannot be asked: it is broken, expected 'two'",
    ]
