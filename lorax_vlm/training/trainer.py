"""Training one adapter: ``transformers.Trainer`` and PEFT underneath, and the corrections BLIP-2 needs on top.

- The frozen base stays in evaluation mode. ``Trainer`` calls ``model.train()``, which would switch on dropout in the
  frozen Q-Former and language model, so the same image would look different in every step.
- The loss is our own, normalised over the whole step, so gradient accumulation gives the same gradients as one large
  batch for every family.
- The first loss that is not finite ends the run and names the module where it began.
"""

import dataclasses
import json
import logging
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorax_vlm.adapters.files import HEAD
from lorax_vlm.adapters.peft_layers import add_peft_layers
from lorax_vlm.adapters.recipe import Recipe, touches_image_path
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.errors import NonFiniteLoss, NothingToResume, TrainingError
from lorax_vlm.models.families.vilt import ViltFamily, grow_head
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.batches import Encode, ExampleDataset, FamilyCollator, make_dataset
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.feature_cache import FeatureCache, encoder_digest
from lorax_vlm.training.progress import ProgressBar, draw_training_curve

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
CURVE_FILE = "curve.png"
_CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves."""

    folder: Path
    """A PEFT directory."""
    curve: Path
    steps: int
    best_validation_loss: float
    first_validation_loss: float
    time_s: float
    trainable_parameters: int
    history: Sequence[Mapping[str, Any]]

    def record(self) -> dict[str, Any]:
        """The figures that belong into the adapter's manifest."""
        return {
            "steps": self.steps,
            "first_validation_loss": self.first_validation_loss,
            "best_validation_loss": self.best_validation_loss,
            "time_s": round(self.time_s, 1),
            "trainable_parameters": self.trainable_parameters,
        }


class AdapterTrainer(Trainer):
    """``Trainer`` with the frozen base kept frozen in behaviour too, and a watch on the loss."""

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
            raise NonFiniteLoss(self.state.global_step, find_nonfinite_module(model, probe), dtype)
        return result

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: ``Trainer`` counts pixels, which are not there when images are already encoded."""
        return 0


def keep_base_in_evaluation(model: nn.Module) -> None:
    """Evaluation mode everywhere except in the adapter's own dropout."""
    model.eval()
    for name, module in model.named_modules():
        if ".lora_dropout." in name:
            module.train()


def find_nonfinite_module(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Repeat a forward pass and name the first module whose output is not finite, None when all are."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not found and any(isinstance(t, Tensor) and not torch.isfinite(t).all() for t in tensors):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**{key: value for key, value in inputs.items() if key != "labels"})
    finally:
        for handle in handles:
            handle.remove()
    return found[0].replace("base_model.model.", "") if found else None


def lora_config(base: LoadedModel, recipe: Recipe) -> LoraConfig:
    """PEFT's configuration for a recipe.

    Raises:
        ValueError: A group of sites matches nothing on this base.
    """
    recipe.sites(
        base.family.name, [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)]
    )
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.effective_alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.pattern(base.family.name),
        base_model_name_or_path=str(base.folder),
    )


def write_untrained_adapter(base: LoadedModel, recipe: Recipe, folder: Path, seed: int = 0) -> Path:
    """Write the PEFT directory of an adapter that is the identity."""
    with preserved_random_state(), _peft_on(base, recipe, seed) as peft_model:
        _save_adapter(peft_model, base, folder)
    return folder


def train_adapter(
    base: LoadedModel,
    recipe: Recipe,
    data: DataSplits,
    config: TrainConfig,
    run_dir: Path,
    *,
    label: str = "adapter",
    resume: bool = False,
    progress: bool = True,
    labels: Sequence[str] = (),
    features_dir: Path | None = None,
) -> TrainingResult:
    """Train an adapter on a plain base and write its PEFT directory to ``run_dir/adapter``.

    The base is plain again afterwards, whether training succeeded or not. Checkpoints stay until
    ``discard_checkpoints``: call it when the adapter is safely stored.

    Args:
        base: Base without adapters attached.
        recipe: Rank and sites.
        data: Training and validation examples.
        config: Steps, rates, early stopping.
        run_dir: Checkpoints, log, curve and result. Killed at any moment, at most the steps since the last checkpoint
            are lost.
        label: Shown beside the progress bar and over the curve.
        resume: Continue from the last complete checkpoint in ``run_dir``. Otherwise what is there is replaced.
        progress: Show a progress bar.
        labels: ViLT only: the answers of a head of the adapter's own; those of the checkpoint first.
        features_dir: Where encoded images are kept for later runs, when the image path is frozen. None: nowhere.

    Raises:
        NothingToResume: ``resume`` without a complete checkpoint.
        TrainingError: ``resume`` with other settings than those the run was started with.
        NonFiniteLoss: The loss became NaN or infinite.
        ExampleError: A row cannot be trained on.
        ImageError: An image cannot be read.
    """
    run = _prepare_run(run_dir, _run_record(base, recipe, data, config, labels), resume)
    if run.result is not None:
        return run.result
    callbacks: list[TrainerCallback] = []
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
    bar = ProgressBar(label) if progress else None
    family = base.family.with_labels(labels) if labels and isinstance(base.family, ViltFamily) else base.family
    encode = _frozen_image_path(base, recipe)
    cache = FeatureCache(features_dir, encoder_digest(base)) if features_dir is not None and encode else None
    with preserved_random_state(), _peft_on(base, recipe, config.seed, labels) as peft_model:
        trainer = AdapterTrainer(
            model=peft_model,
            args=_arguments(base, config, run_dir),
            train_dataset=make_dataset(data.train),
            eval_dataset=ExampleDataset(data.validation),
            data_collator=FamilyCollator(family, encode, cache=cache),
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: family.loss(
                outputs["logits"], labels, num_items_in_batch
            ),
            callbacks=callbacks,
        )
        # The count of target tokens is for our loss function, not for the model's forward.
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        if bar is not None:
            trainer.add_callback(bar)
        try:
            if run.checkpoint is None:
                run = run.recorded(first_validation_loss=trainer.evaluate()["eval_loss"])
            outcome = trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        finally:
            if bar is not None:
                bar.stop()
            if cache is not None:
                cache.flush()
        history = trainer.state.log_history
        folder = _save_adapter(peft_model, base, run_dir / "adapter")
        trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    result = TrainingResult(
        folder=folder,
        curve=draw_training_curve(history, f"{label} on {base.name}", run_dir / CURVE_FILE),
        steps=trainer.state.global_step,
        best_validation_loss=min(row["eval_loss"] for row in history if "eval_loss" in row),
        first_validation_loss=run.first_validation_loss,
        time_s=outcome.metrics["train_runtime"],
        trainable_parameters=trainable,
        history=history,
    )
    run.recorded(result=result)
    return result


def _frozen_image_path(base: LoadedModel, recipe: Recipe) -> Encode | None:
    """The image path as a function, when neither the adapter nor the family changes what it gives."""
    names = [name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)]
    clean = [name.removesuffix(".base_layer") for name in names if ".lora_" not in name]
    if not base.family.takes_features or touches_image_path(recipe.sites(base.family.name, clean)):
        return None

    @torch.no_grad()
    def encode(pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return base.family.encode_images(base.model, pixels.to(base.device), prompts)

    return encode


def _arguments(base: LoadedModel, config: TrainConfig, run_dir: Path) -> TrainingArguments:
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
        logging_steps=max(1, config.eval_every // 5),
        logging_nan_inf_filter=False,
        label_names=["labels"],
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=base.placement.device == "cuda",
        use_cpu=base.placement.device == "cpu",
        seed=config.seed,
        report_to="none",
        disable_tqdm=True,
    )


@contextmanager
def _peft_on(base: LoadedModel, recipe: Recipe, seed: int, labels: Sequence[str] = ()) -> Iterator[PeftModel]:
    """The base with a fresh trainable adapter, and with a head of its own for ``labels``; plain again afterwards.

    Raises:
        TrainingError: Adapters are attached to the base.
    """
    if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
        raise TrainingError(f"Adapters are attached to {base.name}; a new one can only be made on the plain base.")
    torch.manual_seed(seed)
    lora, own_head = lora_config(base, recipe), getattr(base.model, HEAD, None)
    if labels:
        lora.modules_to_save = [HEAD]
    peft_model = add_peft_layers(base.model, lora, "default")
    try:
        if labels:
            base.model.get_submodule(HEAD).modules_to_save["default"] = grow_head(own_head, labels)
        yield peft_model
    finally:
        peft_model.unload()
        if own_head is not None:  # PEFT leaves the trained head in its place
            setattr(base.model, HEAD, own_head)
        base.model.eval().requires_grad_(False)


def _save_adapter(peft_model: PeftModel, base: LoadedModel, folder: Path) -> Path:
    # A name that means the same on every machine, never a path of this one.
    config = peft_model.peft_config["default"]
    config.base_model_name_or_path = base.entry.identity
    config.revision = base.revision
    peft_model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


# --- runs that can be killed ------------------------------------------------------------------------------------------


def _run_record(
    base: LoadedModel, recipe: Recipe, data: DataSplits, config: TrainConfig, labels: Sequence[str]
) -> dict[str, Any]:
    """What must be equal for a run to be continued."""
    return {
        "base": base.name,
        "fingerprint": base.fingerprint,
        "recipe": {
            "rank": recipe.rank,
            "alpha": recipe.effective_alpha,
            "groups": list(recipe.groups),
            "dropout": recipe.dropout,
        },
        "data": {"source": data.source, "train": data.train_count, "validation": len(data.validation)},
        "config": config.to_dict(),
        "labels": list(labels),
    }


@dataclass(frozen=True)
class _Run:
    """A run on disk: how it was started, and where it can be continued."""

    folder: Path
    settings: Mapping[str, Any]
    first_validation_loss: float
    checkpoint: Path | None
    result: TrainingResult | None = None
    """Set when it ended, perhaps without having been stored."""

    def recorded(self, **changes: Any) -> "_Run":
        """The run with something new known of it, written in one step."""
        run = dataclasses.replace(self, **changes)
        result = dataclasses.asdict(run.result) if run.result else None
        record = {"settings": run.settings, "first_validation_loss": run.first_validation_loss, "result": result}
        scratch = run.folder / f".{RUN_FILE}"
        scratch.write_text(json.dumps(record, indent=2, default=str), encoding="utf-8")
        os.replace(scratch, run.folder / RUN_FILE)
        return run


def _prepare_run(run_dir: Path, settings: Mapping[str, Any], resume: bool) -> _Run:
    complete = [path for path in _checkpoints(run_dir) if _is_complete(path)]
    if not resume:
        if complete:
            logger.warning("The unfinished run in %s is started over; --resume would have continued it.", run_dir)
        discard_checkpoints(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        return _Run(run_dir, settings, math.nan, None)
    if not complete or not (run_dir / RUN_FILE).is_file():
        raise NothingToResume(str(run_dir))
    record = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
    started = record["settings"]
    differing = [key for key in settings if started.get(key) != settings[key]]
    if differing:
        changes = "\n".join(f"  {key}: started with {started.get(key)}, now {settings[key]}" for key in differing)
        raise TrainingError(f"The run in {run_dir} has other settings:\n{changes}\nStart over without --resume.")
    for path in _checkpoints(run_dir):
        if path not in complete:
            shutil.rmtree(path)
    ended = record["result"]
    result = (
        TrainingResult(**{**ended, "folder": Path(ended["folder"]), "curve": Path(ended["curve"])}) if ended else None
    )
    return _Run(run_dir, settings, record["first_validation_loss"], complete[-1], result)


def discard_checkpoints(run_dir: Path) -> None:
    """Remove what only a continued run would need."""
    for path in _checkpoints(run_dir):
        shutil.rmtree(path)


def _checkpoints(run_dir: Path) -> list[Path]:
    found = [path for path in run_dir.glob(f"{_CHECKPOINT}*") if path.name.removeprefix(_CHECKPOINT).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_CHECKPOINT)))


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes ``trainer_state.json`` last: if it parses, everything before it is whole."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return False
    return bool(state.get("global_step") == int(checkpoint.name.removeprefix(_CHECKPOINT)))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give the caller's random generators back as they were; the Trainer seeds all of them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
