"""What is left of an adapter on another base, against every control that could explain it away.

    python -m benchmarks.retention                        # all pairs, three seeds, about two hours on two cores
    python -m benchmarks.retention --pairs relative --seeds 1
    python -m benchmarks.retention --table docs/transfer.md     # only write the tables of the pairs in --out

Retention is ``(transferred - target alone) / (native - target alone)`` on test scenes that no training, choice or
transfer has seen; native is trained on the target itself with labels, the same sites, rank and settings. Every pair
and seed is one JSON file in ``--out`` and is not measured again. All of it is about the miniatures.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps

from benchmarks.options import parse
from lorax_vlm.adapters.factors import read_updates
from lorax_vlm.adapters.recipe import Recipe, get_recipe
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.asking import Ask, ask_for, ask_on
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.world.examples import (
    CAPTION_SCENES,
    QUESTION_SCENES,
    draw_scene_image,
    scene_captions,
    scene_questions,
)
from lorax_vlm.data.world.skills import without_targets
from lorax_vlm.errors import TransferRefused
from lorax_vlm.evaluation.intervals import mean_interval, retention
from lorax_vlm.exchange.candidates import random_like, shuffled_layers
from lorax_vlm.exchange.direction import Direction, TransferOptions
from lorax_vlm.exchange.files import write_updates
from lorax_vlm.exchange.teacher import answer
from lorax_vlm.exchange.transfer import PreparedTransfer, prepared_transfer
from lorax_vlm.exchange.transfer_data import TransferData, judge_all, judge_by_target
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.settings import HOME_VARIABLE, features_dir
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import MINI_CONFIG, MINI_VQA_CONFIGS, TrainConfig
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from lorax_vlm.workshop.fitting import fit_to_labels
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterKind, AdapterOrder

RELATIVE = Path("build") / "blip2-opt-mini-coco"
TEST, DEVELOPMENT, UNLABELLED, UNSEEN_FROM = 400, 200, 2000, 20_000
QUICK_SHARE = 0.25
LABEL_SHARES = (0.01, 0.05, 0.25)
HEADING = "### "
BEGIN, END = "<!-- retention: begin -->", "<!-- retention: end -->"

Examples = Callable[..., list[Example]]
"""Called with split, count, and perhaps start and all_questions."""


def draw_changed_image(seed: int, change: str) -> Image.Image:
    """A scene in another visual domain: its negative, or with red, green and blue in turn."""
    image = draw_scene_image(seed)
    if change == "negative":
        return ImageOps.invert(image)
    red, green, blue = image.split()
    return Image.merge("RGB", (green, blue, red))


def captions(split: str, count: int, start: int = 0, all_questions: bool = False, *, style: str) -> list[Example]:
    """Captions of a style."""
    return scene_captions(style, split, count, start)


def changed_captions(
    split: str, count: int, start: int = 0, all_questions: bool = False, *, change: str
) -> list[Example]:
    """Plain captions of pictures in another domain."""
    return [
        replace(example, image=partial(draw_changed_image, int(example.name.split()[1]), change))
        for example in scene_captions("plain", split, count, start)
    ]


def questions(split: str, count: int, start: int = 0, all_questions: bool = False, *, task: str) -> list[Example]:
    """Questions of a type."""
    return scene_questions(task, split, count, per_scene=None if all_questions else 1, start=start)


@dataclass(frozen=True)
class Pair:
    """A source, a target, and what is moved."""

    title: str
    source: str
    target: str
    examples: Examples
    other: Examples
    """Of the adapter for another task that is moved in the same way."""
    recipe: Recipe
    scenes: int
    source_config: TrainConfig
    target_config: TrainConfig
    free_goal: float | None
    """None: without images it must be refused."""
    quick_goal: float
    prompts: tuple[str, ...]
    """Tried on the target alone."""
    unrestricted: Recipe | None = None
    """Sites of a further native training, which shows what the recipe's fewer sites cost."""
    every_question: bool = False
    """Whether the source is asked every question of its kind about an unlabelled image, instead of one."""

    @property
    def asks(self) -> bool:
        """Whether it is about questions."""
        return bool(self.examples("test", 1)[0].question)


_QUESTION_PROMPTS = ("Question: {question} Answer:", "Question: {question} Short answer:", "{question}")
_CAPTION_PROMPTS = ("", "a photo of", "Describe the image in detail.")
_COUNTING = TrainConfig(max_steps=200, batch_size=64, learning_rate=3e-3, eval_every=100, patience=None)
_VISION = replace(MINI_CONFIG, max_steps=300, learning_rate=4e-3, eval_every=75)
_EVERY_SITE = Recipe("every site", rank=8, groups=("vision", "qformer", "projection", "lm-attention", "lm-mlp"))
_COUNTS = Pair(
    title="another language model, language-model LoRA, counting",
    source="blip2-opt-mini",
    target="blip2-flan-mini",
    examples=partial(questions, task="counting"),
    other=partial(questions, task="classification"),
    recipe=get_recipe("heavy"),
    scenes=QUESTION_SCENES,
    source_config=_COUNTING,
    target_config=_COUNTING,
    free_goal=None,
    quick_goal=0.50,
    prompts=_QUESTION_PROMPTS,
)
PAIRS = {
    "relative": Pair(
        title="close relative, language-model LoRA, detailed captions",
        source="blip2-opt-mini",
        target=str(RELATIVE),
        examples=partial(captions, style="detailed"),
        other=partial(captions, style="concise"),
        recipe=get_recipe("medium"),
        scenes=CAPTION_SCENES,
        source_config=MINI_CONFIG,
        target_config=MINI_CONFIG,
        free_goal=0.80,
        quick_goal=0.95,
        prompts=_CAPTION_PROMPTS,
    ),
    "portable": Pair(
        title="shared vision encoder, portable profile, pictures in negative",
        source="blip2-opt-mini",
        target="blip2-flan-mini",
        examples=partial(changed_captions, change="negative"),
        other=partial(changed_captions, change="turned colors"),
        recipe=get_recipe("portable"),
        scenes=CAPTION_SCENES,
        source_config=_VISION,
        target_config=_VISION,
        free_goal=0.60,
        quick_goal=0.90,
        prompts=_CAPTION_PROMPTS,
        unrestricted=_EVERY_SITE,
    ),
    "flan": _COUNTS,
    "vilt": replace(
        _COUNTS,
        title="BLIP-2 to ViLT, closed answers, counting",
        target="vilt-mini",
        source_config=replace(_COUNTING, max_steps=300),
        target_config=replace(_COUNTING, max_steps=MINI_VQA_CONFIGS["vilt-mini"].max_steps),
        every_question=True,
    ),
}

Scores = tuple[float, ...]


class Bench:
    """One pair and one seed."""

    def __init__(self, pair: Pair, seed: int, scratch: Path) -> None:
        self.pair, self.seed, self.scratch = pair, seed, scratch
        self.bases = Bases({}, AdapterStore(scratch / "store"))
        self._held = ExitStack()
        self.source, self.target = (
            self._held.enter_context(self.bases.use(name)) for name in (pair.source, pair.target)
        )
        self.test = pair.examples("test", TEST)
        self.seconds: dict[str, float] = {}

    def measure(self) -> dict[str, object]:
        """Every figure of the table."""
        pair, rows = self.pair, {}
        self._train_source("source", pair.examples)
        self._train_source("other", pair.other)
        rows["source on source"] = self._score(self.source, "source", stored=True)
        rows["target alone"] = self._score(self.target, None)
        rows["target alone, best prompt"] = self._best_prompt()
        rows["native"] = self._native(pair.target_config)
        rows["native, equal steps"] = self._native(self._quick(pair.target_config))
        if pair.unrestricted is not None:
            rows[f"native, {pair.unrestricted.name}"] = self._native(pair.target_config, recipe=pair.unrestricted)
        if self.seed == 0:
            for share in LABEL_SHARES:
                rows[f"native, {share:.0%} of labels"] = self._native(pair.target_config, share)
        refused = self._free(rows)
        rows["distilled"], chosen = self._distilled("source", pair.examples)
        if pair.free_goal is None and self.seed == 0:
            rows["distilled, all the steps"], _ = self._distilled("source", pair.examples, share=1.0)
        rows["other task, moved the same way"], _ = self._distilled("other", pair.other)
        return {
            "pair": pair.title,
            "seed": self.seed,
            "refused_without_images": refused,
            "chosen": chosen,
            "scores": rows,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
        }

    def _ask(self, engine: BaseEngine) -> Ask:
        """How the source's adapter is asked wherever it is moved."""
        return ask_on(engine.entry, self.source.entry, self.source.store.get("source").manifest)

    def _kind(self, engine: BaseEngine) -> AdapterKind:
        skill = Skill("answer" if self.pair.asks else "caption", "retention")
        return AdapterKind(skill, ask_for(engine.entry, skill))

    def _splits(self, engine: BaseEngine, examples: Examples, share: float = 1.0) -> DataSplits:
        train = examples("train", max(8, round(share * self.pair.scenes)), all_questions=True)
        splits = DataSplits(train, examples("validation", 100), f"{self.pair.title}, {share:.0%} of the labels")
        return splits.with_prompt(self._kind(engine).ask.template)

    def _train_source(self, name: str, examples: Examples) -> None:
        config = replace(self.pair.source_config, seed=self.seed)
        order = AdapterOrder(
            name, self._kind(self.source), self.pair.recipe, self._splits(self.source, examples), config
        )
        start = time.monotonic()
        AdapterWorkshop(self.bases, self.pair.source).train(order, progress=False)
        self.seconds[f"training {name}"] = time.monotonic() - start

    def _native(self, config: TrainConfig, share: float = 1.0, recipe: Recipe | None = None) -> Scores:
        splits, labels = self._splits(self.target, self.pair.examples, share), tuple[str, ...]()
        splits, plan = fit_to_labels(self.target.base.family, splits)
        if plan is not None and plan.added:
            labels = plan.labels
        start = time.monotonic()
        result = train_adapter(
            self.target.base,
            AdapterPlan("adapter", recipe or self.pair.recipe, splits, replace(config, seed=self.seed), labels=labels),
            self._fresh("native"),
            features_dir=features_dir(),
            progress=False,
        )
        if share == 1 and recipe is None:
            self.seconds[f"native, {config.max_steps} steps"] = time.monotonic() - start
        return self._score(self.target, result.folder, labels)

    def _score(
        self,
        engine: BaseEngine,
        adapter: str | Path | None,
        labels: Sequence[str] = (),
        stored: bool = False,
        template: str | None = None,
    ) -> Scores:
        settings = self._ask(engine).settings
        if adapter is None or stored:
            texts = answer(engine, adapter if stored else None, self.test, settings)  # type: ignore[arg-type]
        else:
            with engine.trial(Path(adapter), labels) as trial:
                texts = answer(engine, trial, self.test, settings, template)
        return judge_all(judge_by_target, self.test, texts)

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.scratch / name, ignore_errors=True)
        return self.scratch / name

    def _best_prompt(self) -> Scores:
        """The target alone with the best of a few prompts; the choice is made on development scenes."""
        development = self.pair.examples("validation", DEVELOPMENT, UNSEEN_FROM)

        def score(template: str, examples: Sequence[Example]) -> Scores:
            prompts = [template.replace("{question}", example.question) for example in examples]
            pictures = [example.open_image() for example in examples]
            said = self.target.generate_batch([None] * len(prompts), pictures, prompts, self._ask(self.target).settings)
            return judge_all(judge_by_target, examples, [text.text for text in said])

        return score(max(self.pair.prompts, key=lambda p: statistics.mean(score(p, development))), self.test)

    def _quick(self, config: TrainConfig, share: float = QUICK_SHARE) -> TrainConfig:
        steps = round(share * config.max_steps)
        return replace(config, max_steps=steps, eval_every=steps)

    def _options(self, distil: bool, share: float = QUICK_SHARE) -> TransferOptions:
        config = replace(self._quick(self.pair.target_config, share), seed=self.seed)
        return TransferOptions(config=config, run_dir=self.scratch / "transfer", distil=distil, progress=False)

    def _data(self, examples: Examples) -> TransferData:
        start = UNSEEN_FROM + self.seed * UNLABELLED
        return TransferData(
            unlabelled=without_targets(examples("train", UNLABELLED, start, all_questions=self.pair.every_question)),
            development=examples("validation", DEVELOPMENT, UNSEEN_FROM),
        )

    def _moved(
        self, name: str, examples: Examples, options: TransferOptions
    ) -> AbstractContextManager[PreparedTransfer]:
        way = Direction(name, self.pair.source, self.pair.target, "moved", self._data(examples), options)
        return prepared_transfer(self.bases, way)

    def _free(self, rows: dict[str, Scores]) -> bool:
        """What needs no images, with its controls; True when it is refused."""
        options = self._options(distil=False)
        try:
            with self._moved("source", self.pair.examples, options) as prepared:
                template = prepared.ask.template
                rows["training-free"] = self._score(self.target, prepared.chosen.folder, template=template)
                sites = prepared.report.plan.copied_sites
        except TransferRefused:
            return True
        updates = read_updates(self.source.store.read_bytes("source")[1])
        updates = {site: updates[site] for site in sites}
        for name, changed in (
            ("raw copy", updates),
            ("random, same spectrum", random_like(updates, self.seed)),
            ("shuffled layers", shuffled_layers(updates, self.seed)),
        ):
            folder = write_updates(self.scratch / "control", changed, self.target.entry.identity)
            rows[name] = self._score(self.target, folder, template=template)
        with self._moved("other", self.pair.other, options) as prepared:
            rows["other task, training-free"] = self._score(self.target, prepared.chosen.folder, template=template)
        return False

    def _distilled(self, name: str, examples: Examples, share: float = QUICK_SHARE) -> tuple[Scores, str]:
        start = time.monotonic()
        with self._moved(name, examples, self._options(distil=True, share=share)) as prepared:
            chosen = prepared.chosen
            if name == "source" and share == QUICK_SHARE:
                self.seconds["transfer, all of it"] = time.monotonic() - start
            template = prepared.ask.template
            return self._score(self.target, chosen.folder, chosen.labels, template=template), chosen.scored.name


def tables(results: Sequence[dict], published: str = "") -> str:  # type: ignore[type-arg]
    """Markdown of every pair: of what was measured, or what is published where nothing was."""
    sections = dict.fromkeys((pair.title for pair in PAIRS.values()), "")
    for section in published.split(HEADING)[1:]:
        sections[section.partition("\n")[0]] = HEADING + section.strip()
    for key, pair in PAIRS.items():
        own = sorted((r for r in results if r["pair"] == pair.title), key=lambda r: r["seed"])
        if own:
            sections[pair.title] = table(key, pair, own)
    return "\n\n".join(section for section in sections.values() if section)


def table(key: str, pair: Pair, own: Sequence[dict]) -> str:  # type: ignore[type-arg]
    """Markdown of one pair."""
    lines = [f"{HEADING}{pair.title}", ""]
    lines += [f"`{Path(pair.source).name}` to `{Path(pair.target).name}` (`--pairs {key}`).", ""]
    lines += ["| | accuracy by seed | retention by seed | mean |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for result in own for name in result["scores"]):
        measured = [r for r in own if name in r["scores"]]
        accuracy = ", ".join(f"{100 * statistics.mean(r['scores'][name]):.1f} %" for r in measured)
        shares = [retention(r["scores"][name], r["scores"]["target alone"], r["scores"]["native"]) for r in measured]
        known = [share for share in shares if share is not None]
        if name in ("target alone", "native", "source on source"):
            lines.append(f"| {name} | {accuracy} | | |")
            continue
        each = ", ".join(f"{s.value:.2f} ({s.low:.2f} to {s.high:.2f})" if s else "not measurable" for s in shares)
        mean = f"{statistics.mean(s.value for s in known):.2f}" if len(known) == len(shares) else "not measurable"
        lines.append(f"| {_goal(name, pair)} | {accuracy} | {each} | {mean} |")
    if all(r["refused_without_images"] for r in own):
        lines += ["", "Without images: refused."]
    return "\n".join([*lines, "", "Chosen: " + ", ".join(r["chosen"] for r in own) + ". " + _cost(own)])


def _goal(name: str, pair: Pair) -> str:
    if name == "training-free" and pair.free_goal is not None:
        return f"**training-free** (target {pair.free_goal:.2f})"
    if name == "distilled":
        return f"**distilled, 25 % of the steps** (target {pair.quick_goal:.2f})"
    return name


def _cost(own: Sequence[dict]) -> str:  # type: ignore[type-arg]
    seconds = own[0]["seconds"]
    return "Seconds of the first seed: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()) + "."


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build") / "retention")
    parser.add_argument("--table", type=Path, help="write the tables into this page instead of measuring")
    arguments = parse(parser, pairs=["flan"], seeds=1, out=Path(tempfile.mkdtemp()))
    pairs = shrunk(arguments.pairs) if arguments.smoke else PAIRS
    if arguments.table is None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seeds):
            for key in arguments.pairs:
                path = arguments.out / f"{key}-{seed}.json"
                if not path.exists():
                    measure(pairs[key], seed, path)
    results = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*.json"))]
    if arguments.table is None:
        print(tables(results))
        return
    before, _, rest = arguments.table.read_text(encoding="utf-8").partition(BEGIN)
    published, _, after = rest.partition(END)
    text = tables(results, published)
    arguments.table.write_text(f"{before}{BEGIN}\n{text}\n\n{END}{after}", encoding="utf-8")


def shrunk(names: Sequence[str]) -> dict[str, Pair]:
    """Some pairs with next to no training and few examples: their figures say nothing."""
    globals().update(TEST=24, DEVELOPMENT=40, UNLABELLED=80)
    few = TrainConfig(max_steps=4, batch_size=8, eval_every=4, patience=None)
    return {name: replace(PAIRS[name], scenes=40, source_config=few, target_config=few) for name in names}


def measure(pair: Pair, seed: int, path: Path) -> None:
    """One pair and seed, into a file."""
    if pair.target == str(RELATIVE) and not RELATIVE.is_dir():
        raise SystemExit(f"{RELATIVE} does not exist. Make it: python -m recipes.blip2_opt_mini_coco --out {RELATIVE}")
    scratch = Path(tempfile.mkdtemp(prefix="retention-"))
    os.environ[HOME_VARIABLE] = str(scratch)  # so that two of them never share a training's folder
    start = time.monotonic()
    try:
        result = Bench(pair, seed, scratch).measure()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    path.write_text(json.dumps(result))
    print(f"{pair.title}, seed {seed}: {time.monotonic() - start:.0f} s", flush=True)
    for name, scores in result["scores"].items():  # type: ignore[attr-defined]
        print(f"  {name:<32} {mean_interval(scores).value:.1%}", flush=True)


if __name__ == "__main__":
    main()
