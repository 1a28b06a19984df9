"""How long the light commands take in a fresh process, with many adapters stored.

    python -m benchmarks.many_adapters              # 1,000 adapters

Each command runs in a process of its own, start of Python included; the fastest and the median of several count.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.options import parse
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.models.loading import load_model
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.workshop.intake import take_in
from tests.adapters_for_tests import write_manifest, write_random_adapter

COMMANDS = (
    ["adapters", "list"],
    ["adapters", "list", "--json"],
    ["adapters", "check", "a7"],
    ["adapters", "check", "a7", "--model", "blip2-flan-mini"],
    ["adapters", "search", "counting"],
)


def main() -> None:
    """Fill a store and time the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser, adapters=8, rounds=1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["LORAX_VLM_HOME"] = scratch
        base, store = load_model("blip2-opt-mini"), AdapterStore()
        folder = write_random_adapter(base, Path(scratch) / "source", "medium")
        write_manifest(base, folder)
        manifest = take_in(BaseEngine(base, store), folder, "a0").manifest
        for index in range(1, arguments.adapters):
            store.add(f"a{index}", folder, dataclasses.replace(manifest, name=f"a{index}"))
        load_model("blip2-flan-mini").fingerprint.components  # noqa: B018 (read once, as for any base in use)
        print(f"{len(store.names())} adapters")
        for command in COMMANDS:
            times = []
            for _ in range(arguments.rounds):
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "lorax_vlm.cli.main", *command], capture_output=True, check=False
                )
                times.append(time.perf_counter() - start)
                assert done.returncode == ("blip2-flan-mini" in command), done.stderr.decode()
            print(f"{' '.join(command):<45} {min(times):.2f} s, median {statistics.median(times):.2f} s", flush=True)


if __name__ == "__main__":
    main()
