"""Several adapters trained on one base in one run. Each ends as if it had been trained alone.

Their rows share every pass through the frozen base, and an image that several of them look at is encoded once. All
else is an adapter's own: order of examples, learning rate and schedule, clipping, validation, early stopping and the
best weights.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lorax_vlm.errors import TrainingError, UsageError
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.heads import grow_head
from lorax_vlm.models.families.packing import use_packed_attention
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.models.spec import HEAD
from lorax_vlm.settings import process_rank, sharding_requested
from lorax_vlm.training.batches import Encode, ExampleDataset, FamilyCollator
from lorax_vlm.training.checkpointing import checkpoint_layers
from lorax_vlm.training.copies import lora_config, peft_copy, save_adapter
from lorax_vlm.training.feature_cache import FeatureCache, encoder_digest
from lorax_vlm.training.joint_layers import CurrentBlocks, JointLora, route_rows
from lorax_vlm.training.joint_trainer import JointTrainer
from lorax_vlm.training.progress import Show, Telling, draw_training_curve, listener
from lorax_vlm.training.random_state import preserved_random_state
from lorax_vlm.training.runs import CURVE_FILE, REJECTED_FOLDER, Run, TrainingResult, held_run, prepare_run
from lorax_vlm.training.stream_notes import keep_notes, recall_notes
from lorax_vlm.training.students import AdapterPlan, Student
from lorax_vlm.training.trainer import ending, frozen_image_path, make_arguments, require_trackers, run_record
from lorax_vlm.training.weights import choose_step


def train_adapters(
    base: LoadedModel,
    plans: Sequence[AdapterPlan],
    run_dir: Path,
    *,
    resume: bool = False,
    progress: Show = True,
    features_dir: Path | None = None,
) -> dict[str, TrainingResult]:
    """Train several adapters on a plain base together and write their PEFT directories below ``run_dir``.

    Each is the adapter that ``train_adapter`` would have made of its plan alone, but for rounding. The base is not
    touched.

    Args:
        base: The base; others may use it meanwhile.
        plans: The adapters, each with data and settings of its own; ``eval_every`` is that of all.
        run_dir: As for ``train_adapter``; one run with one set of checkpoints for all.
        resume: As for ``train_adapter``.
        progress: True: a progress bar. Or a ``training.progress.Progress`` that is told.
        features_dir: As for ``train_adapter``. If any adapter changes the image path, images are encoded in every step.

    Returns:
        What ``train_adapter`` returns, by name.

    Raises:
        UsageError: No plans, a name twice, or different ``eval_every``, ``mixed_precision`` or
            ``gradient_checkpointing``.
        TrainingError: The launcher asks for FSDP or DeepSpeed.
        LoraxError: As ``train_adapter``; none of the adapters is written.
    """
    names = [plan.name for plan in plans]
    if not plans or len(set(names)) < len(names):
        raise UsageError(f"A joint run needs adapters of different names, got {names}.")
    if sharding_requested():
        raise TrainingError(
            "FSDP and DeepSpeed split the base over processes; here every process holds the whole frozen base, which "
            "has no gradients or optimiser states to split. Launch with --multi_gpu or torchrun, and if the base does "
            "not fit, with --quantize 4bit."
        )
    for setting in ("eval_every", "mixed_precision", "gradient_checkpointing", "report_to"):
        values = {plan.name: getattr(plan.config, setting) for plan in plans}
        if len(set(values.values())) > 1:
            raise UsageError(f"{setting} is of the whole run, but differs between its adapters: {values}.")
    require_trackers(plans[0].config.report_to)
    records = {plan.name: run_record(base, plan) for plan in plans}
    with held_run(run_dir):
        run = prepare_run(run_dir, records, resume, list(records), joint=True)
        if set(run.results) == set(names):
            recall_notes(run.folder, {plan.name: plan.data.train for plan in plans})
            return dict(run.results)
        return _train(base, plans, run, features_dir, progress)


def _train(
    base: LoadedModel, plans: Sequence[AdapterPlan], run: Run, features_dir: Path | None, progress: Show
) -> dict[str, TrainingResult]:
    encodes = [frozen_image_path(base, plan.recipe) for plan in plans]
    encode = encodes[0] if all(encodes) else None
    cache = FeatureCache(features_dir, encoder_digest(base)) if features_dir is not None and encode else None
    told = listener(progress) if process_rank() == 0 else None
    with preserved_random_state():
        trainer = _make_trainer(base, plans, run.folder, encode, cache)
        students = trainer.students
        if told is not None:
            model: Any = trainer.model
            steps = {s.plan.name: s.plan.config.max_steps for s in students}
            samplers = {s.plan.name: s.plan.sampler(base, model, s.slot) for s in students}
            trainer.add_callback(Telling(told, steps, samplers))
        if run.checkpoint is not None:
            recall_notes(run.checkpoint, trainer.streams())
        with ending(cache, told):
            if run.checkpoint is None:
                first = {s.plan.name: trainer.validate(s) for s in students}
                run = run.recorded(first_validation_losses=first)
                if told is not None:
                    told.validated(0, first)
            trainer.train(resume_from_checkpoint=str(run.checkpoint) if run.checkpoint else None)
        time_s = trainer.clock.seconds
        results = {s.plan.name: _result(base, trainer, s, run, time_s) for s in students}
    if process_rank() == 0:
        keep_notes(run.folder, trainer.streams())
    run.recorded(results=results)
    if process_rank() == 0:
        for name, result in results.items():
            draw_training_curve(result.history, f"{name} on {base.name}", result.curve)
    trainer.accelerator.wait_for_everyone()
    return results


def _result(base: LoadedModel, trainer: JointTrainer, student: Student, run: Run, time_s: float) -> TrainingResult:
    """Write the adapter of a finished run: its best weights, or those it began with where no step was better."""
    name, folder = student.plan.name, run.folder / "adapters" / student.plan.name
    first = run.first_validation_losses[name]
    best_step, best_loss = choose_step(student.history, first)
    peft_model: Any = trainer.accelerator.unwrap_model(trainer.model)
    trainer.put(student.best)
    if best_step == 0:
        if process_rank() == 0:
            save_adapter(peft_model, base, folder / REJECTED_FOLDER, student.slot)
        trainer.put(student.beginning)
    if process_rank() == 0:
        save_adapter(peft_model, base, folder, student.slot)
    return TrainingResult(
        folder=folder / student.slot,
        curve=folder / CURVE_FILE,
        steps=student.stopped_at or min(student.plan.config.max_steps, trainer.state.global_step),
        best_step=best_step,
        best_validation_loss=best_loss,
        first_validation_loss=first,
        time_s=time_s,
        trainable_parameters=sum(p.numel() for p in trainer.trained(student)),
        history=student.history,
    )


def _union_of_labels(family: Family, plans: Sequence[AdapterPlan]) -> tuple[Family, list[Tensor | None]]:
    """A family over the answers of all adapters, and where each adapter's own are among them."""
    if not family.labels:
        return family, [None] * len(plans)
    own = [tuple(plan.labels) or family.labels for plan in plans]
    union = tuple(dict.fromkeys(itertools.chain(family.labels, *own)))
    place = {label: index for index, label in enumerate(union)}
    return family.with_labels(union), [torch.tensor([place[label] for label in labels]) for labels in own]


def _joint_copy(base: LoadedModel, plans: Sequence[AdapterPlan]) -> tuple[PeftModel, CurrentBlocks]:
    first, *others = plans
    mapping: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: JointLora}
    peft_model = peft_copy(base, first.recipe, first.config.seed, first.labels, "a0", mapping)
    twin = peft_model.get_base_model()
    for index, plan in enumerate(others, start=1):
        torch.manual_seed(plan.config.seed)
        config = lora_config(base, plan.recipe)
        config._register_custom_module(mapping)
        if plan.labels:
            config.modules_to_save = [HEAD]
        peft_model.add_adapter(f"a{index}", config)
        if plan.labels:
            wrapper: Any = twin.get_submodule(HEAD)
            wrapper.modules_to_save[f"a{index}"] = grow_head(wrapper.original_module, plan.labels)
    for name, parameter in peft_model.named_parameters():  # PEFT thinks of one adapter at a time
        if ".lora_" in name:
            parameter.requires_grad_(True)
    current = CurrentBlocks()
    route_rows(peft_model, current)
    return peft_model, current


def _make_trainer(
    base: LoadedModel, plans: Sequence[AdapterPlan], folder: Path, encode: Encode | None, cache: FeatureCache | None
) -> JointTrainer:
    packed = encode is not None and base.family.packs
    family, columns = _union_of_labels(base.family, plans)
    peft_model, current = _joint_copy(base, plans)
    checkpoint_layers(peft_model, plans[0].config.gradient_checkpointing)
    if packed:
        use_packed_attention(peft_model.get_base_model())
    collate = FamilyCollator(family, encode, cache=cache, lengths=True)
    students = [
        Student(plan, f"a{index}", base.family.with_labels(plan.labels), columns[index])
        for index, plan in enumerate(plans)
    ]
    arguments = make_arguments(base, plans[0].config, folder)
    arguments.max_steps = max(plan.config.max_steps for plan in plans)
    arguments.gradient_accumulation_steps = 1
    arguments.load_best_model_at_end, arguments.metric_for_best_model = False, None
    arguments.ignore_data_skip = True
    arguments.ddp_find_unused_parameters = True
    return JointTrainer(
        students,
        current,
        collate,
        packed,
        family=base.family,
        model=peft_model,
        args=arguments,
        train_dataset=ExampleDataset([]),
        eval_dataset=ExampleDataset([]),
        data_collator=collate,
    )
