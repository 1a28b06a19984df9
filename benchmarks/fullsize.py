"""The four checkpoints at their true size, with random weights: load, one training step, answer, save, reload.

    python -m benchmarks.fullsize                                       # all four, as a CPU would run them
    python -m benchmarks.fullsize blip2-opt-2.7b
    python -m benchmarks.fullsize instructblip-vicuna-7b --limit-gib 12 # in a memory cgroup (Linux, root)

Each checkpoint is written to ``--folder`` (up to 16 GB), measured in a process of its own, and removed. Peak memory is
the process's high-water mark of resident memory. Pages of the memory-mapped weight files are in it: they stay while
nobody needs the memory, and go when somebody does. ``--limit-gib`` shows what is really needed: under it everything
counts, the files' pages too, and a process that needs more is killed. Random weights answer nonsense; what is checked
is that an adapter that was saved and loaded again answers as before.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.options import parse

QUANTIZED_BY_DEFAULT = {"instructblip-vicuna-7b": "4bit"}


def measure(name: str, folder: Path, quantize: str) -> None:
    """Run one checkpoint in this process and print what it took."""
    from lorax_vlm.adapters.recipe import Recipe
    from lorax_vlm.data.examples import DataSplits, answered
    from lorax_vlm.data.scenes import make_scene
    from lorax_vlm.training.config import TrainConfig
    from lorax_vlm.vqa import VQASystem

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        os.environ["LORAX_VLM_HOME"] = home
        system = VQASystem(store=Path(home) / "store", device="cpu", quantize=quantize)  # type: ignore[arg-type]
        model = str(folder)
        base = system.base(model)
        parameters = sum(p.numel() for p in base.model.parameters())
        _print(name, f"loaded: {base.placement.dtype}, {base.placement.quantization}", started, parameters)
        scenes = [make_scene(seed) for seed in range(2)]
        examples = [answered(s.image, "How many dogs are there?", ["2"], f"scene {s.seed}") for s in scenes]
        splits = DataSplits(examples[:1], examples[1:], "two scenes")
        config = TrainConfig(max_steps=1, batch_size=1, eval_every=1, patience=None, learning_rate=1e-2)
        recipe = Recipe("attention", rank=8, groups=("lm-qv",))
        start = time.monotonic()
        system.train_adapter(model, "dogs", "counting", data=splits, complexity=recipe, config=config, progress=False)
        _print(name, "one training step, with two validations", start)
        start = time.monotonic()
        first = system.answer_question(scenes[0].image, "How many dogs are there?", model, "dogs", num_beams=1)
        _print(name, f"answered {str(first)[:30]!r}, {first.tokens} tokens", start)
        with system.workspace.bases.use(model) as engine:
            engine.restore_base()
        again = system.answer_question(scenes[0].image, "How many dogs are there?", model, "dogs", num_beams=1)
        if first != again:
            raise SystemExit(f"{name}: the adapter answers {again!r} after reloading, {first!r} before")
        print(f"{name:<24} peak {_peak_bytes() / 2**30:.2f} GiB, {time.monotonic() - started:.0f} s in all", flush=True)


def limit_memory(gib: float, folder: Path) -> None:
    """Put this process into a memory cgroup of its own, with nothing of ``folder`` in the page cache.

    Raises:
        SystemExit: There are no cgroups here, or this user may not make one.
    """
    old, new = Path("/sys/fs/cgroup/memory/lorax-vlm"), Path("/sys/fs/cgroup/lorax-vlm")
    group, file = (old, "memory.limit_in_bytes") if old.parent.is_dir() else (new, "memory.max")
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        group.mkdir(exist_ok=True)
        (group / file).write_text(str(int(gib * 2**30)))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise SystemExit(f"--limit-gib needs memory cgroups and the right to make one: {error}") from error


def _print(name: str, what: str, start: float, parameters: int = 0) -> None:
    count = f" ({parameters:,} stored values)" if parameters else ""
    print(
        f"{name:<24} {what}{count}: {time.monotonic() - start:.1f} s, peak so far {_peak_bytes() / 2**30:.2f} GiB",
        flush=True,
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Write, measure and remove each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="checkpoints; by default all")
    parser.add_argument("--folder", type=Path, default=Path("build") / "fullsize", help="room for one checkpoint")
    parser.add_argument("--quantize", help="none, 4bit or 8bit; by default none, and 4bit for instructblip-vicuna-7b")
    parser.add_argument("--keep", action="store_true", help="do not remove checkpoints; use those that are there")
    parser.add_argument("--limit-gib", type=float, help="memory limit for the measured process; killed beyond it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parse(parser, names=["blip2-opt-mini"], keep=True)
    if arguments.measure:
        if arguments.limit_gib:
            limit_memory(arguments.limit_gib, arguments.folder / arguments.measure)
        measure(arguments.measure, arguments.folder / arguments.measure, arguments.quantize)
        return
    from benchmarks.random_checkpoints import CHECKPOINTS, checkpoint_of

    for name in arguments.names or list(CHECKPOINTS):
        folder = checkpoint_of(name, arguments.folder, anew=not arguments.keep)
        quantize = arguments.quantize or QUANTIZED_BY_DEFAULT.get(name, "none")
        command = [sys.executable, "-m", "benchmarks.fullsize", "--measure", name, "--quantize", quantize]
        if arguments.limit_gib:
            command += ["--limit-gib", str(arguments.limit_gib)]
        subprocess.run([*command, "--folder", str(folder.parent)], check=True)
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
