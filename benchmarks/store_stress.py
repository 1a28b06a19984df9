"""Processes that write, read and remove in one store, some killed at random; then everything is hashed.

    python -m benchmarks.store_stress               # ten processes for a minute

Printed: what was done, how many were killed, and what ``verify`` finds.
"""

import argparse
import dataclasses
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.options import parse
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import AdapterNotFound
from lorax_vlm.models.loading import load_model
from lorax_vlm.skills import caption
from tests.adapters_for_tests import write_random_adapter

MANIFEST = Manifest(name="one", skill=caption("concise"), base=None, trained=True, rank=8)


def work(root: str, source: str, seed: int, done: Any) -> None:
    """Change and read one store at random, until killed."""
    rng, store = random.Random(seed), AdapterStore(root)
    while True:
        name, manifest = f"a{rng.randrange(6)}", dataclasses.replace(MANIFEST, skill=caption(str(rng.randrange(20))))
        action = rng.choice(("add", "add", "add", "read", "read", "list", "alias", "rollback", "remove", "clean"))
        try:
            if action == "add":
                store.add(name, Path(source), manifest, replace=True)
            elif action == "read":
                assert store.read(name)[1].ranks == [8]
            elif action == "list":
                assert not store.list()[1]
            elif action == "alias":
                store.set_alias(name, "stable")
            elif action == "rollback":
                store.rollback(name)
            elif action == "remove":
                store.remove(name)
            else:
                store.clean()
        except AdapterNotFound:
            action = "not there"
        done.put(action)


def stress(store: AdapterStore, source: Path, processes: int, seconds: float) -> tuple[Counter[str], int]:
    """Let processes work in a store, and kill some of them; in the end all of them.

    Args:
        store: Where.
        source: PEFT directory that is added, of rank 8.
        processes: How many work at a time.
        seconds: For how long.

    Returns:
        What was done, as far as it was told, and how many were killed meanwhile.

    Raises:
        RuntimeError: One ended by itself: something failed in it.
    """
    context, rng, killed, counts = multiprocessing.get_context("fork"), random.Random(0), 0, Counter[str]()

    def start(seed: int) -> tuple[Any, Any]:
        done = context.SimpleQueue()  # of its own: one that is killed while it writes breaks it
        worker = context.Process(target=work, args=(str(store.root), str(source), seed, done), daemon=True)
        worker.start()
        return worker, done

    workers = {seed: start(seed) for seed in range(processes)}
    end, seed = time.monotonic() + seconds, processes
    try:
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.1, 0.5))
            for worker, done in workers.values():
                _require_alive(worker)
                while not done.empty():
                    counts[done.get()] += 1
            if rng.random() < 0.3:
                victim = rng.choice(list(workers))
                workers.pop(victim)[0].kill()
                workers[seed] = start(seed)
                killed, seed = killed + 1, seed + 1
        for worker, _ in workers.values():
            _require_alive(worker)
    finally:
        for worker, _ in workers.values():
            worker.kill()
            worker.join()
    return counts, killed


def _require_alive(worker: Any) -> None:
    if not worker.is_alive():
        raise RuntimeError(f"A process ended by itself, with {worker.exitcode}.")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parse(parser, processes=2, seconds=2.0)
    with tempfile.TemporaryDirectory() as scratch:
        source = write_random_adapter(load_model("blip2-opt-mini"), Path(scratch) / "source", "medium")
        store = AdapterStore(Path(scratch) / "store")
        counts, killed = stress(store, source, arguments.processes, arguments.seconds)
        total = sum(counts.values())
        print(f"{total:,} operations by {arguments.processes} processes, {killed} killed: {dict(counts)}")
        report = store.verify()
        print(
            f"verify: {report.versions} versions, problems {list(report.problems)}, {len(report.leftovers)} leftovers"
        )
        store.clean()
        print(f"after clean: problems {list(store.verify().problems)}, broken entries {store.list()[1]}")


if __name__ == "__main__":
    main()
