"""Training one adapter: ``transformers.Trainer`` and PEFT underneath, and the corrections BLIP-2 needs on top.

- The frozen base stays in evaluation mode. ``Trainer`` calls ``model.train()``, which would switch on dropout in the
  frozen Q-Former and language model, so the same image would look different in every step.
- The loss is our own, normalised over the whole step, so gradient accumulation gives the same gradients as one large
  batch for every family.
- The first loss that is not finite ends the run and names the module where it began.
- Training works on a copy of the base's module tree that shares its tensors, so whoever uses the base meanwhile sees
  nothing of it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lorax_vlm.adapters.factors import Update
from lorax_vlm.adapters.recipe import Recipe, count_by_component, touches_image_path
from lorax_vlm.errors import NonFiniteLoss, PathError, TrainingError, UsageError
from lorax_vlm.models.components import IMAGE_PATH_COMPONENTS
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.pictures import Features, Picture
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.settings import process_count
from lorax_vlm.training.batches import Encode, ExampleDataset, FamilyCollator, make_dataset, make_sampler
from lorax_vlm.training.checkpointing import checkpoint_layers
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import keep_base_in_evaluation, linear_names, peft_copy, save_adapter
from lorax_vlm.training.distinct_images import encode_distinct
from lorax_vlm.training.feature_cache import FeatureCache, encoder_digest
from lorax_vlm.training.nonfinite import find_nonfinite_module
from lorax_vlm.training.progress import Progress, Show, Telling, draw_training_curve, listener
from lorax_vlm.training.random_state import preserved_random_state
from lorax_vlm.training.resuming import RunClock, keep_patience, logging_interval, read_elapsed, read_standing
from lorax_vlm.training.runs import (
    CURVE_FILE,
    REJECTED_FOLDER,
    Run,
    TrainingResult,
    held_run,
    is_complete,
    prepare_run,
    seal_checkpoint,
    why_unwritable,
)
from lorax_vlm.training.stream_notes import keep_notes, recall_notes
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.weights import choose_step, put_weights, start_from, trained_weights

logger = logging.getLogger(__name__)


class AdapterTrainer(Trainer):
    """``Trainer`` with our loss, the frozen base kept frozen in behaviour too, and a watch on the loss."""

    def __init__(self, family: Family, rows_per_image: int = 1, **options: Any) -> None:
        """As ``Trainer``, with the family whose loss it is, and how many rows of an image follow each other."""
        self.family, self._rows_per_image = family, rows_per_image
        super().__init__(compute_loss_func=self.model_loss, **options)
        # The count of target tokens is for our loss function, not for the model's forward.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)

    def model_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The family's loss, normalised over the whole optimiser step."""
        return self.family.loss(outputs["logits"], labels, num_items_in_batch)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.compute_loss``, with only the adapter in training mode.

        Raises:
            NonFiniteLoss: The loss is NaN or infinite.
        """
        if model.training:
            keep_base_in_evaluation(model)
        probe = dict(inputs)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss.detach()).all():
            dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
            plain = self.accelerator.unwrap_model(model)
            raise NonFiniteLoss(self.state.global_step, find_nonfinite_module(plain, probe), dtype)
        return result

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """See ``make_sampler``."""
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return make_sampler(dataset, self._rows_per_image, self.args.seed)

    def train(self, resume_from_checkpoint: Any = None, **options: Any) -> Any:
        """As ``Trainer.train``, by a clock of the whole run."""
        self.clock = RunClock(Path(resume_from_checkpoint) if resume_from_checkpoint else None)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **options)

    def streams(self) -> Mapping[str, Any]:
        """What is trained on, by adapter, as far as it may be a stream."""
        return {"": getattr(self.train_dataset, "examples", ())}

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: ``Trainer`` counts pixels, which are not there when images are already encoded."""
        return 0

    def _point_at_best(self) -> Path | None:
        """Let the state name the best checkpoint by its place now; a run's folder may have been moved since."""
        if not self.state.best_global_step:
            return None
        best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best)
        return best

    def _load_best_model(self) -> None:
        """As ``Trainer``, which keeps the last weights with a warning where the best are gone.

        Raises:
            TrainingError: The best are gone.
        """
        best = self._point_at_best()
        if best is not None and not is_complete(best):
            raise TrainingError(f"The best weights of this run, in {best}, are damaged or gone. Train once more.")
        super()._load_best_model()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As ``Trainer``, then sealed by the first process when all have written.

        Raises:
            PathError: It cannot be written, such as on a full disk.
        """
        self._point_at_best()
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            with _quiet("transformers.trainer_utils"):  # says how it orders checkpoints
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                keep_notes(folder, self.streams())
                self.clock.keep(folder)
                seal_checkpoint(folder)
        # What torch and safetensors raise when they cannot write.
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = why_unwritable(folder.parent, error)
            former = [path for path in folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path != folder]
            hint = "with --resume: what was trained until the checkpoint before is kept" if former else "from the start"
            raise PathError(
                str(folder), f"the checkpoint cannot be written: {reason}", f"Make room and run again {hint}."
            ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a library's logger say errors only."""
    chatty = logging.getLogger(name)
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        yield
    finally:
        chatty.setLevel(level)


def train_adapter(
    base: LoadedModel,
    plan: AdapterPlan,
    run_dir: Path,
    *,
    resume: bool = False,
    progress: Show = True,
    features_dir: Path | None = None,
    start: Mapping[str, Update] | None = None,
) -> TrainingResult:
    """Train an adapter on a plain base and write its PEFT directory to ``run_dir/adapter``.

    The base is not touched. Checkpoints stay until ``discard_run``: call it when the adapter is safely stored. The
    beginning is a candidate like every validated step: where none is better, the adapter ends as it began, and the best
    of the trained steps lies in ``run_dir/rejected``.

    Args:
        base: The base; others may use it meanwhile.
        plan: The adapter. Its name is shown beside the progress bar and over the curve.
        run_dir: Checkpoints, log, curve and result. Killed at any moment, at most the steps since the last checkpoint
            are lost.
        resume: Continue from the last complete checkpoint in ``run_dir``. Otherwise what is there is replaced.
        progress: True: a progress bar. Or a ``training.progress.Progress`` that is told.
        features_dir: Where encoded images are kept for later runs, when the image path is frozen. None: nowhere.
        start: Updates to begin with, by module name; sites without one begin as the identity.

    Raises:
        ValueError: An update to begin with has no site, or more ranks than the recipe.
        NothingToResume: ``resume`` without a complete checkpoint.
        TrainingError: ``resume`` with other settings than those the run was started with.
        RunInUse: Another process or thread trains in ``run_dir``.
        PathError: A checkpoint or the result cannot be written.
        NonFiniteLoss: The loss became NaN or infinite.
        ExampleError: A row cannot be trained on.
        ImageError: An image cannot be read.
        RuntimeError: There are several processes; ``joint.train_adapters`` knows what each has to do.
    """
    if process_count() > 1:
        raise RuntimeError("Under several processes train with lorax_vlm.training.joint.train_adapters.")
    require_trackers(plan.config.report_to)
    with held_run(run_dir):
        run = prepare_run(run_dir, run_record(base, plan), resume, [plan.name])
        if plan.name in run.results:
            recall_notes(run.folder, {"": plan.data.train})
            return run.results[plan.name]
        return _train(base, plan, run, features_dir, start, progress)


def _train(
    base: LoadedModel,
    plan: AdapterPlan,
    run: Run,
    features_dir: Path | None,
    start: Mapping[str, Update] | None,
    progress: Show,
) -> TrainingResult:
    told, name = listener(progress), plan.name
    encode = frozen_image_path(base, plan.recipe)
    cache = FeatureCache(features_dir, encoder_digest(base)) if features_dir is not None and encode else None
    with preserved_random_state():
        trainer = _make_trainer(base, plan, run.folder, encode, cache)
        peft_model: Any = trainer.model
        if start:
            start_from(peft_model, start)
        beginning = trained_weights(peft_model)
        if told is not None:
            samplers = {name: plan.sampler(base, peft_model)}
            trainer.add_callback(Telling(told, {name: plan.config.max_steps}, samplers))
        if run.checkpoint is not None:
            recall_notes(run.checkpoint, trainer.streams())
        with ending(cache, told):
            if run.checkpoint is None:
                run = run.recorded(first_validation_losses={name: trainer.evaluate()["eval_loss"]})
            time_s = _train_on(trainer, run.checkpoint, plan.config)
        history, first = trainer.state.log_history, run.first_validation_losses[name]
        best_step, best_loss = choose_step(history, first)
        if best_step == 0:
            save_adapter(peft_model, base, run.folder / REJECTED_FOLDER)
            put_weights(peft_model, beginning)
        result = TrainingResult(
            folder=save_adapter(peft_model, base, run.folder / "adapter"),
            curve=run.folder / CURVE_FILE,
            steps=trainer.state.global_step,
            best_step=best_step,
            best_validation_loss=best_loss,
            first_validation_loss=first,
            time_s=time_s,
            trainable_parameters=sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
            history=history,
        )
    keep_notes(run.folder, trainer.streams())
    run.recorded(results={name: result})
    draw_training_curve(history, f"{name} on {base.name}", result.curve)
    return result


def _train_on(trainer: AdapterTrainer, checkpoint: Path | None, config: TrainConfig) -> float:
    """Train, from a checkpoint if there is one, and end with the best weights; how many seconds all pieces took.

    A run that had ended, and was killed before its result was recorded, takes no further step.
    """
    if checkpoint is not None:
        standing = read_standing(checkpoint)
        if standing.has_ended(config):
            trainer.state = standing.state
            trainer._load_best_model()
            return read_elapsed(checkpoint)
        keep_patience(trainer, standing.waited)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.clock.seconds


def _make_trainer(
    base: LoadedModel, plan: AdapterPlan, folder: Path, encode: Encode | None, cache: FeatureCache | None
) -> AdapterTrainer:
    config, family = plan.config, base.family.with_labels(plan.labels)
    peft_model = peft_copy(base, plan.recipe, config.seed, plan.labels)
    checkpoint_layers(peft_model, config.gradient_checkpointing)
    if distinct := encode is None and base.family.takes_features:
        encode_distinct(peft_model.get_base_model(), family)
    patience = config.patience
    return AdapterTrainer(
        family=family,
        rows_per_image=config.rows_per_image,
        model=peft_model,
        args=make_arguments(base, config, folder),
        train_dataset=make_dataset(plan.data.train),
        eval_dataset=ExampleDataset(plan.data.validation),
        data_collator=FamilyCollator(family, encode, cache=cache, distinct=distinct),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=patience)] if patience is not None else [],
    )


@contextmanager
def ending(cache: FeatureCache | None, told: Progress | None) -> Iterator[None]:
    """A block that trains: however it ends, what it encoded is kept and who listens is told."""
    try:
        yield
    finally:
        if cache is not None:
            cache.flush()
        if told is not None:
            told.finished()


def frozen_image_path(base: LoadedModel, recipe: Recipe) -> Encode | None:
    """The image path as a function; None, with a line in the log, when its features cannot be kept.

    They can when neither the adapter nor the text changes what it gives.
    """
    sites = recipe.sites(base.family.name, linear_names(base.model))
    if not base.family.takes_features:
        logger.info("%s reads image and text together: images are looked at in every step.", base.name)
        return None
    if touches_image_path(sites):
        changed = ", ".join(sorted(IMAGE_PATH_COMPONENTS & count_by_component(sites).keys()))
        logger.info("Recipe %r changes the image path (%s): images are encoded in every step.", recipe.name, changed)
        return None

    @torch.no_grad()
    def encode(pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Features]:
        return base.family.encode_images(base.model, pictures, prompts)

    return encode


def require_trackers(names: Sequence[str]) -> None:
    """Raise ``UsageError`` for a tracker that is not installed here, before any work."""
    there = get_available_reporting_integrations()
    if missing := [name for name in names if name not in there]:
        raise UsageError(f"report_to: {', '.join(missing)} is not installed. Here: {', '.join(there) or 'none'}.")


def make_arguments(base: LoadedModel, config: TrainConfig, run_dir: Path) -> TrainingArguments:
    """``Trainer``'s settings for ours."""
    return TrainingArguments(
        output_dir=str(run_dir),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.warmup_share * config.max_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        eval_strategy="steps",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.eval_every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        logging_steps=logging_interval(config.eval_every),
        logging_nan_inf_filter=False,
        label_names=["labels"],
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=base.placement.device == "cuda",
        use_cpu=base.placement.device == "cpu",
        bf16=config.mixed_precision,
        seed=config.seed,
        report_to=list(config.report_to) or "none",
        disable_tqdm=True,
    )


def run_record(base: LoadedModel, plan: AdapterPlan) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    return {
        "base": base.name,
        "fingerprint": base.fingerprint.components,
        "dtype": base.placement.dtype,
        "quantization": base.placement.quantization,
        "recipe": plan.recipe.to_dict(),
        "data": plan.data.content(),
        "config": plan.config.to_dict(),
        "labels": list(plan.labels),
        **plan.purpose,
    }
