"""Making adapters on one base: training, storing, and what a stored adapter was made of. Shared by the systems."""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Unpack

from accelerate import PartialState

from lorax_vlm.adapters.manifest import INIT_FROM, Manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.ownership import require_storable
from lorax_vlm.adapters.recipe import Recipe, chosen_recipe
from lorax_vlm.adapters.seen import write_seen
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.data.noted import NotedStream
from lorax_vlm.data.problems import write_problems
from lorax_vlm.data.world.skills import require_scenes
from lorax_vlm.errors import AdapterExists, DamagedAdapter, LoraxError, PathError, UsageError
from lorax_vlm.evaluation.seen import KNOWN_BY, Heritage, Identity, identities
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.families.base import LabelPlan
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.settings import features_dir, process_count, process_rank, runs_dir
from lorax_vlm.skills import Skill
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import write_untrained_adapter
from lorax_vlm.training.defaults import skill_config
from lorax_vlm.training.inspection import BatchInspection, choose_rows, inspect_batch
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.progress import Show, listener
from lorax_vlm.training.runs import CURVE_FILE, REJECTED_FOLDER, TrainingResult, discard_run, held_run
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter
from lorax_vlm.types import require_flag
from lorax_vlm.workshop.fitting import fit_to_labels, require_fitting
from lorax_vlm.workshop.intake import keep, made_on
from lorax_vlm.workshop.orders import AdapterKind, AdapterOrder, Wanted, make_order, measured_at_once, usual
from lorax_vlm.workshop.sampling import sampler
from lorax_vlm.workshop.starting import NOTHING, Start, read_start, recipe_of

logger = logging.getLogger(__name__)

LEFT_OUT_FILE = "left_out.jsonl"
"""In the folder of a run: the rows that were left out, and why."""


class AdapterWorkshop:
    """Creates and trains adapters for one base, which is loaded when there is work to do."""

    def __init__(self, bases: Bases, model: str) -> None:
        """Nothing is loaded.

        Args:
            bases: The door to the base.
            model: Its key, catalogue name, hub id or folder.

        Raises:
            UnknownModel: It is none of these.
        """
        self._bases, self._model, self._store = bases, model, bases.store
        bases.entry(model)

    @property
    def _entry(self) -> CatalogEntry:
        return self._bases.entry(self._model)

    def order(self, name: str, skill: Skill, **wanted: Unpack[Wanted]) -> AdapterOrder:
        """What would be trained; nothing is loaded but the data. See ``orders.make_order``."""
        entry, start = self._bases.described(self._model), None
        if (asked := wanted.get("init_from")) is not None:
            start = self._store.find(asked, entry.name)
            if (begun := recipe_of(start, entry.family)) is not None:
                wanted["recipe"] = chosen_recipe(wanted.get("recipe"), begun)
        order = make_order(entry, name, skill, **wanted)
        return dataclasses.replace(order, start=start.reference) if start is not None else order

    def make(
        self, name: str, skill: Skill, *, replace: bool = False, progress: Show = True, **wanted: Unpack[Wanted]
    ) -> StoredAdapter:
        """Train an adapter, or store it untrained where there are no examples.

        One of this name that was made for the same skill, with the same recipe, settings and base, on data of the same
        content is used as it is.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            UsageError: The skill (without data) or the recipe is unknown.
            LoraxError: Training failed.
        """
        entry, order = self._bases.described(self._model), None
        require_flag("replace", replace)
        kind, recipe, _ = usual(entry, skill, **wanted)
        if wanted.get("data") is None:
            require_scenes(skill)
        if wanted.get("data") is not None or entry.miniature:
            order = self.order(name, skill, **wanted)
            recipe = order.recipe
        if not replace and name in self._store:
            stored = self._store.get(name)
            if self._is_made_of(stored.manifest, kind, recipe, order):
                logger.info("Adapter %r was made with the same settings before; it is used as it is.", name)
                return stored
        require_storable(self._store, self._bases.owner(self._model), name, replace=replace)
        if order is None and wanted.get("init_from") is not None:
            raise UsageError(f"{entry.name} has no built-in examples, and training on from an adapter takes data=.")
        if order is not None:
            return self.train(order, replace=replace, progress=progress)
        return self._keep_untrained(name, kind, recipe, replace)

    def _keep_untrained(self, name: str, kind: AdapterKind, recipe: Recipe, replace: bool) -> StoredAdapter:
        with held_run(self.run_dir(name)), self._bases.use(self._model) as engine:
            folder = write_untrained_adapter(engine.base, recipe, self.run_dir(name) / "untrained")
            logger.warning(
                "Adapter %r is untrained and changes nothing yet. Train it: pass data=, or lorax-vlm train.", name
            )
            facts = {"recipe": recipe.to_dict()}
            manifest = _manifest(engine, name, kind, recipe, trained=False, training=facts)
            return keep(engine, folder, manifest, replace=replace)

    def run_dir(self, name: str) -> Path:
        """Where the training of this name keeps checkpoints, log and curve.

        Runs of one name for other stores, or on another folder that holds a base, have folders of their own.
        """
        return self._run_dir(require_adapter_name(name))

    def _run_dir(self, name: str) -> Path:
        entry = self._entry
        place = json.dumps([str(self._store.root.resolve()), entry.source, name])
        return runs_dir() / entry.name / f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    def training_curve(self, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self.run_dir(name) / CURVE_FILE

    def _is_made_of(self, manifest: Manifest, kind: AdapterKind, recipe: Recipe, order: "AdapterOrder | None") -> bool:
        """Whether an adapter would come out again; what a record does not say is not taken to be equal."""
        own = (kind.skill, kind.ask.template, kind.ask.settings, order is not None)
        theirs = (manifest.skill, manifest.prompt, manifest.generation, manifest.trained)
        if own != theirs or manifest.training.get("recipe") != recipe.to_dict():
            return False
        begun = manifest.training.get(INIT_FROM, {}).get("digest")
        if begun != (self._store.get(order.start).digest if order is not None and order.start else None):
            return False
        if order is not None:
            asked, recorded = order.splits.content(), manifest.training.get("asked_data")
            if order.splits.streamed or asked != recorded:  # a stream is not known before it is read
                return False
            if {**TrainConfig().to_dict(), **manifest.training.get("config", {})} != order.config.to_dict():
                return False
        if manifest.base is None:
            return False
        with self._bases.use(self._model) as engine:  # last, since only now it need be loaded
            return manifest.base.components == engine.base.fingerprint.components

    def train(
        self, order: AdapterOrder, *, replace: bool = False, resume: bool = False, progress: Show = True
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained adapter of that name becomes trained.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
            RunInUse: Another process or thread trains an adapter of that name for this store.
            LoraxError: Training failed; see ``training.trainer.train_adapter``.
        """
        if process_count() > 1:
            return self.train_together([order], replace=replace, resume=resume, progress=progress)[0]
        require_flag("resume", resume)
        run_dir = self.run_dir(order.name)
        listener(progress)  # before a base is loaded
        with held_run(run_dir):
            if resume and (stored := self._finished(order, replace)) is not None:
                return stored
            before = self._require_storable(order, replace)
            with self._bases.use(self._model) as engine:
                start = read_start(engine, order.start, order.recipe) if order.start else NOTHING
                plan, facts = self._plan(engine, order, start)
                result = train_adapter(
                    engine.base,
                    plan,
                    run_dir,
                    resume=resume,
                    progress=progress,
                    features_dir=features_dir(),
                    start=start.updates,
                )
                kept = self._keep_trained(engine, order, plan, facts, result, before, start)
            discard_run(run_dir)
        return kept

    def train_together(
        self, orders: Sequence[AdapterOrder], *, replace: bool = False, resume: bool = False, progress: Show = True
    ) -> list[StoredAdapter]:
        """Train several adapters in one run and store them; each is what ``train`` would have made of it.

        Raises:
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false.
            RunInUse: Another process or thread trains these adapters for this store.
            UsageError: A name occurs twice.
            LoraxError: Training failed, see ``training.joint.train_adapters``; or an adapter could not be stored, when
                all others have been.
        """
        if len(orders) == 1 and process_count() == 1:
            return [self.train(orders[0], replace=replace, resume=resume, progress=progress)]
        require_flag("resume", resume)
        if begun := [order.name for order in orders if order.start is not None]:
            raise UsageError(f"{', '.join(begun)}: adapters that begin with others are trained alone, in one process.")
        listener(progress)
        orders = measured_at_once(orders)
        names = "\n".join(order.name for order in orders)
        run_dir = self._run_dir(f"joint-{hashlib.sha256(names.encode()).hexdigest()[:12]}")
        with ExitStack() as held:
            for folder in (run_dir, *sorted(self.run_dir(order.name) for order in orders)):
                held.enter_context(held_run(folder))
            finished = {order.name for order in orders if resume and self._finished(order, replace) is not None}
            if len(finished) == len(orders):
                return [self._store.get(order.name) for order in orders]
            missing = [order for order in orders if order.name not in finished]
            before = {order.name: self._require_storable(order, replace) for order in missing}
            with self._bases.use(self._model) as engine:
                planned = [self._plan(engine, order) for order in orders]
                plans = [plan for plan, _ in planned]
                results = train_adapters(
                    engine.base, plans, run_dir, resume=resume, progress=progress, features_dir=features_dir()
                )
                if process_rank() == 0:
                    kept = [(o, p) for o, p in zip(orders, planned, strict=True) if o.name not in finished]
                    self._keep_all(engine, [o for o, _ in kept], [p for _, p in kept], results, before)
            if process_rank() == 0:
                discard_run(run_dir)
        if process_count() > 1:
            PartialState().wait_for_everyone()
        return [self._store.get(order.name) for order in orders]

    def _finished(self, order: AdapterOrder, replace: bool) -> StoredAdapter | None:
        """The stored adapter that continuing this order would make, if it is there: nothing is left to be done."""
        if order.name not in self._store:
            return None
        try:
            stored = self._store.get(order.name)
        except DamagedAdapter:
            if replace:
                return None
            raise
        if not self._is_made_of(stored.manifest, order.kind, order.recipe, order):
            return None
        logger.warning("Adapter %r is finished and stored; there is nothing to continue.", order.name)
        return stored

    def _keep_all(
        self,
        engine: BaseEngine,
        orders: Sequence[AdapterOrder],
        planned: Sequence[tuple[AdapterPlan, Mapping[str, Any]]],
        results: Mapping[str, TrainingResult],
        before: Mapping[str, str | None],
    ) -> None:
        """Store every adapter that can be; those that cannot are said afterwards."""
        failures: list[LoraxError] = []
        for order, (plan, facts) in zip(orders, planned, strict=True):
            result = results[order.name]
            try:
                self._keep_trained(engine, order, plan, facts, result, before[order.name])
                self._hand_on(result, self.run_dir(order.name))
            except LoraxError as error:
                failures.append(error)
            except OSError as error:
                failures.append(PathError.of(self.training_curve(order.name), error))
        if failures:
            for other in failures[1:]:
                logger.error("%s", other)
            raise failures[0]

    @staticmethod
    def _hand_on(result: TrainingResult, run_dir: Path) -> None:
        """Put what a joint run leaves of one adapter where a run of its own would have left it."""
        shutil.rmtree(run_dir / REJECTED_FOLDER, ignore_errors=True)
        run_dir.mkdir(parents=True, exist_ok=True)
        if result.curve.is_file():  # what ended right after the training has none, and a curve is a picture
            shutil.copy(result.curve, run_dir / CURVE_FILE)
        if (rejected := result.folder.parent / REJECTED_FOLDER).is_dir():
            shutil.copytree(rejected, run_dir / REJECTED_FOLDER)

    def _require_storable(self, order: AdapterOrder, replace: bool) -> str | None:
        """Find out whether the result can be stored, and what may be in its place then; see ``_require_unchanged``."""
        require_flag("replace", replace)
        require_storable(
            self._store, self._bases.owner(self._model), order.name, replace=replace, replace_untrained=True
        )
        return None if replace else self._digest(order.name)

    def _digest(self, name: str) -> str:
        """Of the version in use; empty where there is none that can be read."""
        try:
            return self._store.get(name).digest if name in self._store else ""
        except DamagedAdapter:
            return ""

    def _require_unchanged(self, name: str, before: str | None, folder: Path) -> None:
        """Raise ``AdapterExists`` unless what is stored is what was there before; None: whatever is there may go."""
        if before is not None and self._digest(name) != before:
            logger.error(
                "%r was stored meanwhile. What was trained waits in %s: run again with --replace.", name, folder
            )
            raise AdapterExists(name, str(self._store.root))

    def plan(self, order: AdapterOrder) -> AdapterPlan:
        """What training an order would train: the examples that fit the base, and the answers that a head needs.

        Raises:
            DataError: A text does not fit the model, or no answer is one that it can give.
        """
        with self._bases.use(self._model) as engine:
            return _fitted(engine, order)[0]

    def inspect(self, plan: AdapterPlan, rows: int) -> BatchInspection:
        """Look into a batch of some rows, as training would build it; see ``training.inspection``."""
        with self._bases.use(self._model) as engine:
            return inspect_batch(engine.base, choose_rows(plan.data.train, rows), plan.labels)

    def _plan(
        self, engine: BaseEngine, order: AdapterOrder, start: Start = NOTHING
    ) -> tuple[AdapterPlan, dict[str, Any]]:
        """What to train, and what the manifest is to say about it; rows that are left out are listed in a file."""
        plan, answers = _fitted(engine, order)
        plan = start.begun(plan)
        splits, path = plan.data, self.run_dir(order.name) / LEFT_OUT_FILE
        if process_rank() == 0:
            path.unlink(missing_ok=True)  # of an earlier run
        if splits.left_out and process_rank() == 0:
            splits.write_left_out(path)
            for reason in splits.left_out_reasons():
                logger.warning("Of %s %s are left out; see %s", splits.source, reason, path)
        facts: dict[str, Any] = {
            "recipe": order.recipe.to_dict(),
            "config": order.config.to_dict(),
            "asked_data": order.splits.content(),
            "data": splits.summary(),
            "data_identity": splits.identity(),
            KNOWN_BY: [Identity.FILE] if splits.streamed else sorted(identities(splits.train)),
        }
        if answers is not None:
            facts["label_coverage"] = answers.coverage
        if splits.streamed:
            plan = dataclasses.replace(plan, data=dataclasses.replace(splits, train=NotedStream(splits.train)))
        return dataclasses.replace(plan, sample=sampler(engine, plan, order.kind.ask.settings)), facts

    def _keep_trained(
        self,
        engine: BaseEngine,
        order: AdapterOrder,
        plan: AdapterPlan,
        facts: Mapping[str, Any],
        result: TrainingResult,
        before: str | None,
        start: Start = NOTHING,
    ) -> StoredAdapter:
        self._require_unchanged(order.name, before, result.folder)
        streamed = tuple(getattr(plan.data.train, "problems", ()))
        if streamed and process_rank() == 0:  # found while it was read
            write_problems([*plan.data.left_out, *streamed], self.run_dir(order.name) / LEFT_OUT_FILE)
        own = Heritage.of_data(plan.data, facts[KNOWN_BY])
        heritage = start.joined(own)
        write_seen(result.folder, heritage.images)
        training = {**facts, **result.record(), **start.facts, **heritage.facts()}
        usual = own.known_by == {Identity.DRAWING} and order.config == skill_config(engine.entry, order.kind.skill)
        if result.still_falling and not usual:  # what is usual for drawn scenes is known to suffice
            more = 3 * result.steps
            logger.warning(
                "%r: the validation loss was still falling; more steps may help, such as %d", order.name, more
            )
        facts = {"trained": True, "training": training, "labels": tuple(plan.labels), "lineage": start.lineage}
        manifest = _manifest(engine, order.name, order.kind, order.recipe, **facts)
        return keep(engine, result.folder, manifest, replace=True)


def _manifest(engine: BaseEngine, name: str, kind: AdapterKind, recipe: Recipe, **facts: Any) -> Manifest:
    how: dict[str, Any] = {"recipe": recipe.name, "prompt": kind.ask.template, "generation": kind.ask.settings}
    return made_on(engine, Manifest(name=name, skill=kind.skill, base=None, **how, **facts))


def _fitted(engine: BaseEngine, order: AdapterOrder) -> tuple[AdapterPlan, LabelPlan | None]:
    family = engine.base.family
    splits = require_fitting(family, order.splits, skip_bad_rows=order.skip_bad_rows)
    splits, answers = fit_to_labels(family, splits)
    if answers is not None:
        logger.info("%s", answers.summary())
    labels = answers.labels if answers is not None and answers.added else ()
    purpose = {"kind": dataclasses.asdict(order.kind)}
    return AdapterPlan(order.name, order.recipe, splits, order.config, labels, purpose), answers
