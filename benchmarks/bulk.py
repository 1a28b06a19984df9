"""Captioning folders: against the engine alone, by the number of adapters, against a loop, and over 100,000 images.

    python -m benchmarks.bulk                 # all of it, about ten minutes on two cores
    python -m benchmarks.bulk --images 256 --many 20000

*Rate*: a job over drawn scenes on disk, beside ``Engine.generate`` on the same images already decoded, in turn.
*Adapters*: the same job with one, two and three adapters; each further one is compared with the first.
*Loop*: what the known caption tools do, one image after another with transformers and PEFT's ``set_adapter``.
*Many*: jobs over many tiny images that no model is asked about; the peak memory of a process with few and with many,
and the time of ``lorax-vlm caption`` when all are done.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image

from benchmarks.options import parse
from lorax_vlm import Workspace
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.bulk.answering import LocalAnswers, Pace
from lorax_vlm.bulk.job import BulkJob
from lorax_vlm.bulk.order import bulk_order
from lorax_vlm.data.images import load_image
from lorax_vlm.data.scenes import iterate_scenes
from lorax_vlm.models.catalog import get_model_entry
from lorax_vlm.models.loading import load_model
from lorax_vlm.requests import Request
from lorax_vlm.runtime.fake import FakeEngine
from tests.adapters_for_tests import write_manifest, write_random_adapter

MODEL = "blip2-opt-mini"
NAMES = ("a", "b", "c")


def draw(folder: Path, count: int) -> None:
    """Write drawn scenes as files."""
    folder.mkdir()
    for number, scene in enumerate(iterate_scenes("test", count)):
        scene.image.save(folder / f"{number}.png")


def make_adapters(workspace: Workspace, folder: Path) -> None:
    """Store random adapters that change texts and keep them short."""
    with workspace.bases.use(MODEL) as engine:
        for seed, name in enumerate(NAMES):
            made = write_random_adapter(engine.base, folder / name, seed=seed, scale=0.1)
            workspace.store.add(name, made, write_manifest(engine.base, made, rank=8, sites={"lm": 12}))


def measure_rate(workspace: Workspace, photos: Path, scratch: Path, rounds: int) -> None:
    """The job beside the engine, in turn."""
    pictures = [load_image(path) for path in sorted(photos.iterdir())]
    size = workspace.bases.batch_size(get_model_entry(MODEL))
    seconds: dict[str, list[float]] = {"engine": [], "job": []}
    for number in range(rounds + 1):
        with workspace.engine(MODEL) as engine:
            start = time.monotonic()
            for first in range(0, len(pictures), size):
                engine.generate([Request.about(p, None, "a") for p in pictures[first : first + size]])
            engine_s = time.monotonic() - start
        start = time.monotonic()
        workspace.bulk(photos, ["a"], base=MODEL, out=scratch / f"rate {number}").run()
        if number:  # the first one warms up
            seconds["engine"].append(engine_s)
            seconds["job"].append(time.monotonic() - start)
    rates = {name: len(pictures) / statistics.median(all_s) for name, all_s in seconds.items()}
    share = rates["job"] / rates["engine"]
    print(f"rate: engine {rates['engine']:.1f} images/s, job {rates['job']:.1f}: {share:.2f} of it", flush=True)


def measure_adapters(workspace: Workspace, photos: Path, scratch: Path, rounds: int) -> None:
    """The job by the number of adapters."""
    seconds: dict[int, list[float]] = {count: [] for count in range(1, len(NAMES) + 1)}
    for number in range(rounds):
        for count, all_s in seconds.items():
            start = time.monotonic()
            out = scratch / f"{count} adapters {number}"
            workspace.bulk(photos, NAMES[:count], base=MODEL, out=out).run()
            all_s.append(time.monotonic() - start)
    first, *more = (statistics.median(all_s) for all_s in seconds.values())
    for count, took in enumerate(more, start=2):
        each = (took - first) / (count - 1) / first
        print(f"adapters: {count} take {took:.1f} s, one {first:.1f} s: {each:.2f} of the first for each further one")


@torch.no_grad()
def measure_loop(workspace: Workspace, photos: Path, scratch: Path) -> None:
    """One image after another with transformers and PEFT, and the same images by a job; captions are compared."""
    paths = sorted(photos.iterdir())[:64]
    some = scratch / "some"
    some.mkdir()
    for path in paths:
        (some / path.name).symlink_to(path)
    base = load_model(MODEL, dtype="float32")
    model = PeftModel.from_pretrained(base.model, workspace.store.get("a").folder, adapter_name="a")
    model.set_adapter("a")
    settings, prompt = base.entry.caption_settings, base.entry.caption_prompt
    start, said = time.monotonic(), {}
    for path in paths:
        inputs = base.family.processor(images=load_image(path), text=prompt, return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, num_beams=1, do_sample=False)
        said[path.stem] = base.family.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    loop_s, start = time.monotonic() - start, time.monotonic()
    workspace.bulk(some, ["a"], base=MODEL, out=scratch / "some texts").run()
    job_s = time.monotonic() - start
    equal = sum((scratch / "some texts" / f"{name}.txt").read_text() == text for name, text in said.items())
    rates = f"{len(paths) / loop_s:.1f} images/s, job {len(paths) / job_s:.1f} images/s"
    print(f"loop: {rates}, {loop_s / job_s:.1f} times as fast; {equal} of {len(paths)} captions equal", flush=True)


@contextmanager
def _no_model() -> Iterator[FakeEngine]:
    yield FakeEngine(lambda request: "a red square on a gray background")


def write_many(folder: Path) -> None:
    """Run a job without a model over a folder, and print the peak memory of this process in MiB."""
    order = bulk_order(get_model_entry(MODEL), AdapterStore(folder.parent / "store"), folder, ())
    BulkJob(order, LocalAnswers(_no_model, Pace(128))).run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_many(scratch: Path, many: int) -> None:
    """Memory by the number of images, and the start of a command when all are done."""
    peaks = {}
    for count in (max(1, min(1000, many // 2)), many):
        folder = scratch / f"{count} images"
        folder.mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, number // 65536)).save(
                folder / f"{number}.png"
            )
        start = time.monotonic()
        run = [sys.executable, "-m", "benchmarks.bulk", "--write-many", str(folder)]
        printed = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[count] = float(printed.split()[-1])
        print(
            f"many: {count:,} images without a model in {time.monotonic() - start:.0f} s, peak {peaks[count]:.0f} MiB"
        )
    few, all_of_them = peaks.values()
    print(f"many: {all_of_them - few:+.0f} MiB for {many:,} images, {(all_of_them - few) / few:+.1%}")
    again = [sys.executable, "-m", "lorax_vlm", "caption", str(scratch / f"{many} images"), "--json"]
    start = time.monotonic()
    done = subprocess.run(
        [*again, "--store", str(scratch / "store")], check=True, stdout=subprocess.PIPE, env=os.environ, text=True
    )
    again_s, texts = time.monotonic() - start, json.loads(done.stdout)["report"]["texts"]
    print(f"many: the command over {many:,} images that are done: {again_s:.1f} s, {texts} texts", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="drawn scenes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=100_000, help="tiny images; 0 leaves them out")
    parser.add_argument("--write-many", type=Path, help=argparse.SUPPRESS)
    options = parse(parser, images=8, rounds=1, many=16)
    if options.write_many is not None:
        write_many(options.write_many)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        photos = scratch / "photos"
        draw(photos, options.images)
        workspace = Workspace("mini", store=scratch / "store")
        make_adapters(workspace, scratch / "made")
        measure_rate(workspace, photos, scratch, options.rounds)
        measure_adapters(workspace, photos, scratch, options.rounds)
        measure_loop(workspace, photos, scratch)
        if options.many:
            measure_many(scratch, options.many)


if __name__ == "__main__":
    main()
