"""Every fuzzer finds nothing in its first cases; ``make fuzz`` runs each for a minute."""

import random
from importlib import import_module
from pathlib import Path

import pytest

from fuzz.harness import Fuzzer, run
from lorax_vlm.errors import UsageError

FUZZERS = sorted(
    path.stem for path in Path(__file__).parents[2].glob("fuzz/*.py") if path.stem not in ("__init__", "harness")
)


@pytest.mark.parametrize("name", FUZZERS)
def test_nothing_is_found(name: str) -> None:
    fuzzer: Fuzzer = import_module(f"fuzz.{name}").FUZZER
    assert fuzzer.name == name
    assert run(fuzzer, seconds=10, most=300).sound


def test_the_harness_counts_what_came_of_each_case() -> None:
    def attempt(rng: random.Random, folder: Path) -> None:
        assert not list(folder.iterdir())
        way = rng.randrange(3)
        if way == 0:
            raise UsageError("refused")
        if way == 1:
            raise KeyError("a finding")

    outcome = run(Fuzzer("harness", attempt), seconds=60, most=60)
    assert outcome.cases == outcome.taken + outcome.refused + sum(outcome.findings.values()) == 60
    assert min(outcome.taken, outcome.refused) > 5
    assert len(outcome.findings) == 1
    assert not outcome.sound
    assert not run(Fuzzer("harness", attempt), seconds=60, most=60).findings - outcome.findings, "cases are repeatable"


def test_a_case_that_hangs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.harness.SLOW_S", 0.05)
    monkeypatch.setattr("fuzz.harness.PATIENCE_S", 0.2)

    def attempt(rng: random.Random, folder: Path) -> None:
        while True:
            try:
                sum(range(1000))
            except Exception:
                continue

    assert run(Fuzzer("harness", attempt), seconds=60, most=1).slow == 1
