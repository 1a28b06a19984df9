"""What all fuzzers share: numbered, repeatable cases, a clock for each, and a count of what came of them.

A fuzzer makes a case from a random generator and tries it. Right ends are two: the input is taken, or it is refused
with an error of our own. Everything else (another exception, a case that takes more than ``SLOW_S``, a broken promise
said by ``AssertionError``) is a finding, printed with the command that repeats it alone.
"""

import argparse
import logging
import random
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorax_vlm.errors import LoraxError

SLOW_S = 5.0
PATIENCE_S = 30.0
"""So long a case may take that hardly computes, since other programs have the processor."""
MOST_MIB = 1024
_SHOWN = 10

Try = Callable[[random.Random, Path], Any]
"""One case: make an input with the generator, in the empty folder, and give it to the code; return if it is taken."""


class TooSlow(BaseException):
    """A case ran into the clock; no ``except Exception`` swallows it."""


@dataclass(frozen=True)
class Fuzzer:
    """A kind of input."""

    name: str
    attempt: Try


@dataclass
class Outcome:
    """What came of the cases of one fuzzer."""

    name: str
    cases: int = 0
    taken: int = 0
    refused: int = 0
    findings: Counter[str] = field(default_factory=Counter)
    """By kind: exception and place."""
    slow: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.findings and not self.slow

    def line(self) -> str:
        """The last line of a run."""
        return (
            f"{self.name}: {self.cases:,} cases in {self.seconds:.0f} s: {self.taken:,} taken, "
            f"{self.refused:,} refused, {sum(self.findings.values()):,} exceptions that are not ours, "
            f"{self.slow} over {SLOW_S:g} s, peak {peak_mib():,.0f} MiB"
        )


def peak_mib() -> float:
    """Most memory that this process ever took."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(fuzzer: Fuzzer, seconds: float, seed: int = 0, first: int = 0, most: int | None = None) -> Outcome:
    """Try cases number ``first``, ``first + 1``, ... for some time; findings are printed as they come.

    Args:
        fuzzer: Makes and tries cases.
        seconds: After which no further case begins.
        seed: Of all cases.
        first: Number of the first case.
        most: Number of cases after which it ends, whatever the time.
    """
    outcome, began, number = Outcome(fuzzer.name), time.monotonic(), first
    while time.monotonic() - began < seconds and (most is None or outcome.cases < most):
        outcome.cases += 1
        rng = random.Random(f"{fuzzer.name} {seed} {number}")
        with tempfile.TemporaryDirectory(prefix="lorax-fuzz-") as folder:
            try:
                with _clock():
                    fuzzer.attempt(rng, Path(folder))
                outcome.taken += 1
            except LoraxError:
                outcome.refused += 1
            except TooSlow as error:
                outcome.slow += 1
                _report(fuzzer, seed, number, error)
            except Exception as error:
                kind = f"{type(error).__name__} at {_place(error)}"
                outcome.findings[kind] += 1
                if outcome.findings[kind] == 1 and len(outcome.findings) <= _SHOWN:
                    _report(fuzzer, seed, number, error)
        number += 1
    outcome.seconds = time.monotonic() - began
    for kind, count in outcome.findings.most_common():
        print(f"  {count:,} x {kind}")
    print(outcome.line(), flush=True)
    return outcome


@contextmanager
def _clock() -> Iterator[None]:
    began, computed = time.monotonic(), time.process_time()

    def ring(*_: Any) -> None:
        waited, busy = time.monotonic() - began, time.process_time() - computed
        if busy < SLOW_S and waited < PATIENCE_S:  # others have the processor
            signal.setitimer(signal.ITIMER_REAL, SLOW_S - busy)
            return
        raise TooSlow(f"more than {SLOW_S:g} s: {waited:.1f} s, {busy:.1f} s of them computing")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _place(error: BaseException) -> str:
    """The deepest line of the package that the exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "lorax_vlm" in frame.filename] or list(frames)
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _report(fuzzer: Fuzzer, seed: int, number: int, error: BaseException) -> None:
    print(f"{type(error).__name__}: {str(error)[:200]}")
    print("".join(traceback.format_tb(error.__traceback__)[-3:]))
    print(f"again: python -m fuzz.{fuzzer.name} --seed {seed} --first {number} --most 1", flush=True)


def main(fuzzer: Fuzzer) -> int:
    """The command line of one fuzzer; exit code 1 when anything was found."""
    parser = argparse.ArgumentParser(description=f"Fuzz {fuzzer.name}.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--most", type=int, help="number of cases")
    asked = parser.parse_args()
    logging.getLogger("lorax_vlm").setLevel(logging.ERROR)  # what it warns of is what it is given
    sound = run(fuzzer, asked.seconds, asked.seed, asked.first, asked.most).sound
    if peak_mib() > MOST_MIB:
        print(f"{fuzzer.name}: more than {MOST_MIB:,} MiB of memory")
    return 0 if sound and peak_mib() <= MOST_MIB else 1
