"""Do the miniatures still say, learn and judge what they did? For changes that must move no number.

    python -m benchmarks.golden --write before.json       # some four minutes on two cores
    python -m benchmarks.golden --compare before.json

Texts of the bases, weights after short seeded trainings (alone, together, on a folder), texts of mixed batches with
those adapters, merges, verdicts of compatibility, fingerprints and figures, taken by public calls and commands alone.
Digests of trained weights are those of one machine with one number of threads: record them where you compare.
``--smoke`` takes one model and few steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from lorax_vlm import BLIP2CaptioningSystem, MultiModalLoRAExchange, TrainConfig, VQASystem, make_scene

WRITERS = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini")
MODELS = (*WRITERS, "vilt-mini")
QUESTIONS = (
    "how many objects are there?",
    "what color is the circle?",
    "what shape is on the left?",
    "is there a red square?",
)
FIRST_SCENE = 5_000


class Size(NamedTuple):
    """How much is done."""

    writers: tuple[str, ...] = WRITERS
    models: tuple[str, ...] = MODELS
    scenes: int = 12
    steps: int = 20
    judged: int = 40
    merges: bool = True
    """Adapters of a few steps may be no better than their base: then there is nothing to merge."""


SMOKE = Size(writers=WRITERS[:1], models=MODELS[:1], scenes=2, steps=2, judged=4, merges=False)


def command(*arguments: str, json_output: bool = True) -> Any:
    """What ``lorax-vlm`` prints, read as JSON, beside its exit code where that is 1."""
    call = [sys.executable, "-m", "lorax_vlm", *arguments, *(["--json"] if json_output else [])]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    if done.returncode > 1 or not (done.stdout.strip() or not json_output):
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout) if json_output else done.stdout


def weights_of(name: str) -> str:
    """Digest of a stored adapter's weights, by way of an export."""
    with tempfile.TemporaryDirectory() as folder:
        command("adapters", "export", name, f"{folder}/a", json_output=False)
        return sha256(Path(folder, "a", "adapter_model.safetensors").read_bytes()).hexdigest()


def base_texts(size: Size) -> dict[str, list[str]]:
    """Captions and answers of the bases alone."""
    scenes = [make_scene(FIRST_SCENE + k).image for k in range(size.scenes)]
    texts = {}
    for model in size.writers:
        texts[f"{model} captions"] = [str(said) for said in BLIP2CaptioningSystem(model).caption_images(scenes)]
    system = VQASystem()
    for model in size.models:
        images = [scene for scene in scenes for _ in QUESTIONS]
        texts[f"{model} answers"] = [
            str(said) for said in system.answer_questions(images, QUESTIONS * len(scenes), model)
        ]
    return texts


def train_all(size: Size) -> dict[str, str]:
    """Short seeded trainings, alone, together and on a folder; digests of the weights by name."""
    config = TrainConfig(max_steps=size.steps, eval_every=max(size.steps // 2, 1), patience=None, seed=7)
    for model in size.writers:
        styles = BLIP2CaptioningSystem(model)
        styles.create_captioning_adapter(f"{model}-detailed", "detailed", config=config, progress=False)
    styles = BLIP2CaptioningSystem(size.writers[0])
    styles.train_adapters({"one": "concise", "two": "creative"}, config=config, progress=False)
    system, exchange = VQASystem(), MultiModalLoRAExchange()
    for model in size.models:
        system.create_vqa_adapter(model, "counting", "counting", config=config, progress=False)
    first = size.models[0]
    exchange.create_adapter(first, "general", "general", config=config, progress=False)
    exchange.create_adapter(first, "look", "captioning", "portable", config=config, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        command("scenes", "export", f"{folder}/f", "--task", "color", "--count", "60", json_output=False)
        options = ["--steps", str(size.steps), "--model", first]
        command("train", "own", "--task", "color", "--data", f"{folder}/f", *options, json_output=False)
    if size.merges:
        exchange.merge_adapters([f"{first}.counting", f"{first}.general"], "merged")
        exchange.merge_adapters([f"{first}.counting", f"{first}.own"], "ties", method="ties", rank=8)
    return {stored.name: weights_of(stored.name) for stored in exchange.list_adapters()}


def adapter_texts(size: Size) -> dict[str, list[str]]:
    """Texts of mixed batches with the adapters of ``train_all``."""
    image, texts = make_scene(FIRST_SCENE + 100).image, {}
    for model in size.writers:
        said = BLIP2CaptioningSystem(model).compare_captioning_styles(image)
        texts[f"{model} styles"] = [f"{name}: {text}" for name, text in sorted(said.items())]
    system = VQASystem()
    for model in size.models:
        more = ("own", "general", *(["merged"] if size.merges else [])) if model == size.models[0] else ()
        names = [None, "counting", *more]
        adapters = [name for name in names for _ in QUESTIONS]
        rows = system.answer_questions([image] * len(adapters), QUESTIONS * len(names), model, adapters)
        texts[f"{model} mixed"] = [f"{name}: {text}" for name, text in zip(adapters, rows, strict=True)]
    exchange = MultiModalLoRAExchange()
    for name, text in (("general", QUESTIONS[0]), ("look", "")):
        both: Any = exchange.generate_with_adapter(f"{size.models[0]}.{name}", image, text, compare=True)
        texts[f"exchange {name}"] = [f"{key}: {value}" for key, value in both.items()]
    return texts


def verdicts(size: Size) -> dict[str, Any]:
    """What belongs where, what a transfer would take, and who a base is."""
    first, second = size.models[0], MODELS[1]
    found: dict[str, Any] = {f"fingerprint {m}": command("models", "fingerprint", m) for m in {*size.models, second}}
    found["matrix"] = command("adapters", "matrix")
    for name in (f"{first}.look", f"{first}.counting"):
        found[f"plan {name}"] = command("exchange", "plan", name, "--to", second, "--images", "200")
    return found


def figures(size: Size) -> dict[str, Any]:
    """Evaluations on held-out scenes."""
    first, count = size.models[0], str(size.judged)
    return {
        "captions": command("evaluate", "one", "two", "--count", count, "--model", first, "--no-base"),
        "counting": command("evaluate", "counting", "--task", "counting", "--count", count, "--model", first),
    }


def record(size: Size) -> dict[str, Any]:
    """Everything, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["LORAX_VLM_HOME"] = home
        os.environ["HF_HUB_OFFLINE"] = "1"
        parts = (base_texts, train_all, adapter_texts, verdicts, figures)
        return {part.__name__: json.loads(json.dumps(_timeless(part(size)))) for part in parts}


def _timeless(value: Any) -> Any:
    """Without seconds, dates and places, which differ from run to run."""
    if isinstance(value, Mapping):
        gone = ("time_s", "seconds", "created", "folder", "path", "store")
        return {str(key): _timeless(item) for key, item in value.items() if not str(key).endswith(gone)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_timeless(item) for item in value]
    return value


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Every leaf that is not the same, with its place."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in differences(before.get(key), after.get(key), f"{where}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for k, (old, new) in pairs for line in differences(old, new, f"{where}/{k}")]
    return [] if before == after else [f"{where}: {before!r} -> {after!r}"]


def leaves(value: Any) -> int:
    """How many values are compared."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if items is None else sum(map(leaves, items))


def main(arguments: Sequence[str] | None = None) -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="one model, few steps")
    options = parser.parse_args(arguments)
    now = record(SMOKE if options.smoke else Size())
    if options.write:
        options.write.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        print(f"{options.write}: {leaves(now):,} values")
        return 0
    before = json.loads(options.compare.read_text())
    changed = differences(before, now)
    print("\n".join([*changed, f"{leaves(before):,} values, {len(changed)} differ"]))
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
