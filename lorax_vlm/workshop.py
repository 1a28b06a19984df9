"""Making adapters on one base: training, storing, and what a stored adapter was made of. Shared by the systems."""

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from lorax_vlm.adapters.factors import Update
from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.store import StoredAdapter
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.errors import DataError
from lorax_vlm.models.families.vilt import LabelPlan, ViltFamily, plan_labels
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.settings import features_dir, process_count, process_rank, runs_dir
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.joint_trainer import AdapterPlan
from lorax_vlm.training.runs import CURVE_FILE, TrainingResult, discard_checkpoints
from lorax_vlm.training.trainer import train_adapter, write_untrained_adapter
from lorax_vlm.types import GenerationSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter is to do."""

    task: str
    """Such as ``captioning`` or ``vqa``."""
    style: str
    """The caption style, or the skill that questions ask for."""
    prompt: str
    """Template of the prompt; ``{question}`` stands for the question."""
    generation: GenerationSettings | None = None
    """How its text is decoded when the caller does not say. None: as the base's."""


@dataclass(frozen=True)
class AdapterOrder:
    """An adapter to be trained."""

    name: str
    kind: AdapterKind
    recipe: Recipe
    splits: DataSplits
    config: TrainConfig


class AdapterWorkshop:
    """Creates and trains adapters for the base of one library."""

    def __init__(self, library: AdapterLibrary) -> None:
        self._library = library

    def run_dir(self, name: str) -> Path:
        """Where the training of this name keeps checkpoints, log and curve."""
        return runs_dir() / self._library.entry.name / require_adapter_name(name)

    def training_curve(self, name: str) -> Path:
        """Where the last finished training of this name drew its curve."""
        return self.run_dir(name) / CURVE_FILE

    def create(
        self,
        name: str,
        kind: AdapterKind,
        recipe: Recipe,
        splits: DataSplits | None,
        config: TrainConfig,
        *,
        replace: bool = False,
        progress: bool = True,
    ) -> StoredAdapter:
        """Train an adapter, or store an untrained one when there are no examples.

        One of this name that was made with the same kind, recipe, data and settings is used as it is.

        Raises:
            AdapterExists: The name is taken by a different adapter and ``replace`` is false.
            LoraxError: Training failed.
        """
        made_of = {"data": splits.summary(), "config": config.to_dict()} if splits else {}
        stored = self._library.store.get(name) if name in self._library.store else None
        if stored is not None and not replace and self._is_made_of(stored.manifest, kind, recipe, made_of):
            logger.info("Adapter %r was made with the same settings before; it is used as it is.", name)
            return stored
        self._library.require_free(name, replace)
        if splits is not None:
            order = AdapterOrder(name, kind, recipe, splits, config)
            return self.train(order, replace=replace, progress=progress)
        self._library.restore_base()
        folder = write_untrained_adapter(self._library.base, recipe, self.run_dir(name) / "untrained")
        logger.warning(
            "Adapter %r is untrained and changes nothing yet. Train it: pass data=, or lorax-vlm train.", name
        )
        return self._library.keep(folder, self._manifest(name, kind, recipe, trained=False), replace=replace)

    def _is_made_of(self, manifest: Manifest, kind: AdapterKind, recipe: Recipe, made_of: Mapping[str, Any]) -> bool:
        same_base = manifest.base is not None and manifest.base.name == self._library.entry.identity
        known = (manifest.task, manifest.style, manifest.recipe, manifest.trained)
        same_kind = known == (kind.task, kind.style, recipe.name, bool(made_of))
        config = TrainConfig().to_dict() | manifest.training.get("config", {})  # settings that came later
        recorded = {**manifest.training, "config": config}
        return same_base and same_kind and all(recorded.get(key) == value for key, value in made_of.items())

    def train(
        self, order: AdapterOrder, *, replace: bool = False, resume: bool = False, progress: bool = True
    ) -> StoredAdapter:
        """Train an adapter and store it; an untrained adapter of that name becomes trained.

        Raises:
            AdapterExists: The name is taken by a trained adapter and ``replace`` is false.
            LoraxError: Training failed; see ``training.trainer.train_adapter``.
        """
        if process_count() > 1:
            return self.train_together([order], replace=replace, resume=resume, progress=progress)[0]
        self._require_free(order, replace)
        run_dir, base = self.run_dir(order.name), self._library.base
        self._library.restore_base()
        plan, facts = self._plan(order)
        result = train_adapter(
            base,
            order.recipe,
            plan.data,
            order.config,
            run_dir,
            label=order.name,
            resume=resume,
            progress=progress,
            labels=plan.labels,
            features_dir=features_dir(),
        )
        kept = self._keep_trained(order, plan, facts, result)
        discard_checkpoints(run_dir)
        return kept

    def train_together(
        self, orders: Sequence[AdapterOrder], *, replace: bool = False, resume: bool = False, progress: bool = True
    ) -> list[StoredAdapter]:
        """Train several adapters in one run and store them; each is what ``train`` would have made of it.

        Raises:
            AdapterExists: A name is taken by a trained adapter and ``replace`` is false.
            ValueError: A name occurs twice, or ``eval_every`` differs.
            LoraxError: Training failed; see ``training.joint.train_adapters``.
        """
        if len(orders) == 1 and process_count() == 1:
            return [self.train(orders[0], replace=replace, resume=resume, progress=progress)]
        for order in orders:
            self._require_free(order, replace)
        names = "\n".join(order.name for order in orders)
        run_dir = runs_dir() / self._library.entry.name / f"joint-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
        base = self._library.base
        self._library.restore_base()
        planned = [self._plan(order) for order in orders]
        plans = [plan for plan, _ in planned]
        results = train_adapters(base, plans, run_dir, resume=resume, progress=progress, features_dir=features_dir())
        if process_rank() == 0:
            for order, (plan, facts) in zip(orders, planned, strict=True):
                result = results[order.name]
                self._keep_trained(order, plan, facts, result)
                self.training_curve(order.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(result.curve, self.training_curve(order.name))
            discard_checkpoints(run_dir)
        if process_count() > 1:
            PartialState().wait_for_everyone()
        return [self._library.store.get(order.name) for order in orders]

    def train_folder(
        self,
        recipe: Recipe,
        splits: DataSplits,
        config: TrainConfig,
        run_dir: Path,
        *,
        labels: Sequence[str] = (),
        start: Mapping[str, Update] | None = None,
        progress: bool = True,
    ) -> TrainingResult:
        """Train an adapter that is not stored (yet); see ``training.trainer.train_adapter``."""
        self._library.restore_base()
        return train_adapter(
            self._library.base,
            recipe,
            splits,
            config,
            run_dir,
            label=run_dir.name,
            progress=progress,
            labels=labels,
            features_dir=features_dir(),
            start=start,
        )

    def _require_free(self, order: AdapterOrder, replace: bool) -> None:
        stored = self._library.store.get(order.name) if order.name in self._library.store else None
        self._library.require_free(order.name, replace or (stored is not None and not stored.manifest.trained))

    def _plan(self, order: AdapterOrder) -> tuple[AdapterPlan, dict[str, Any]]:
        """What to train, and what the manifest is to say about it."""
        family, splits = self._library.base.family, order.splits
        facts: dict[str, Any] = {
            "data": splits.summary(),
            "data_identity": splits.identity(),
            "config": order.config.to_dict(),
        }
        labels: Sequence[str] = ()
        if isinstance(family, ViltFamily):
            splits, label_plan = fit_to_labels(family, splits)
            logger.info("%s", label_plan.summary())
            labels = label_plan.labels if label_plan.added else ()
            facts |= {
                "data": splits.summary(),
                "data_identity": splits.identity(),
                "label_coverage": label_plan.coverage,
            }
        return AdapterPlan(order.name, order.recipe, splits, order.config, labels), facts

    def _keep_trained(
        self, order: AdapterOrder, plan: AdapterPlan, facts: Mapping[str, Any], result: TrainingResult
    ) -> StoredAdapter:
        training = {**facts, **result.record()}
        manifest = self._manifest(
            order.name, order.kind, order.recipe, trained=True, training=training, labels=plan.labels
        )
        return self._library.keep(result.folder, manifest, replace=True)

    def _manifest(self, name: str, kind: AdapterKind, recipe: Recipe, **facts: Any) -> Manifest:
        return self._library.manifest(
            name,
            task=kind.task,
            style=kind.style,
            recipe=recipe.name,
            prompt=kind.prompt,
            generation=kind.generation,
            **facts,
        )


def fit_to_labels(family: ViltFamily, splits: DataSplits) -> tuple[DataSplits, LabelPlan]:
    """Examples whose answers a classifier can give, and the set of answers it needs."""
    plan = plan_labels(family, [example.answers or (example.target,) for example in splits.train])
    grown = family.with_labels(plan.labels)
    parts = [
        [example for example in part if grown.label_scores(example.answers or (example.target,))]
        for part in (splits.train, splits.validation)
    ]
    if not all(parts):
        raise DataError(splits.source, [plan.summary(), "no training or no validation example has a known answer"])
    return dataclasses.replace(splits, train=parts[0], validation=parts[1]), plan
