"""``Trainer`` for several adapters on one base: a step is made of each adapter's own step.

See ``joint.py``.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

from lorax_vlm.data.examples import Example
from lorax_vlm.models.families.base import IGNORED_LABEL
from lorax_vlm.models.families.packing import pack_rows
from lorax_vlm.training.batches import LENGTHS, make_dataset, make_sampler
from lorax_vlm.training.joint_layers import CurrentBlocks, RowBlocks
from lorax_vlm.training.progress import stopped_key, training_key, validation_key
from lorax_vlm.training.students import Student
from lorax_vlm.training.trainer import AdapterTrainer
from lorax_vlm.training.weights import put_weights

CPU_PASS_ROWS = 8

_Part = tuple[str, list[Example]]
"""PEFT's name of an adapter and its next rows."""
_WEIGHTS, _STATE = "adapters.safetensors", "adapters.json"


class JointTrainer(AdapterTrainer):
    """``Trainer`` for several adapters: a step is made of each adapter's own step."""

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self, students: Sequence[Student], current: CurrentBlocks, collate: Any, packed: bool, **options: Any
    ) -> None:
        """As ``AdapterTrainer``; ``packed`` batches need ``use_packed_attention`` and encoded images."""
        super().__init__(**options)
        self.students, self._current, self._collate, self._packed = students, current, collate, packed
        self._idle = False
        self._resumed_from: str | None = None
        named = dict(self.model.named_parameters())
        self._weights = {s.slot: {name: p for name, p in named.items() if s.owns(name)} for s in students}
        for student in students:
            student.beginning = {name: p.detach().clone() for name, p in self._weights_of(student).items()}

    def streams(self) -> Mapping[str, Any]:
        """See ``AdapterTrainer.streams``."""
        return {student.plan.name: student.plan.data.train for student in self.students}

    # --- data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Steps of all adapters; a resumed run begins where it was."""
        return _Steps(self)

    def joint_steps(self) -> Iterator[list[dict[str, Any]]]:
        """Every step as its passes; together they have the next rows of all adapters that still learn."""
        orders = {student.slot: _own_steps(student) for student in self.students}
        for step in itertools.count():
            if step == self.state.global_step and self._resumed_from is not None:
                # Before the step's rows are drawn: `Trainer` does so only where it skips steps by itself.
                self._load_rng_state(self._resumed_from)
                self._resumed_from = None
            mine = {student.slot: next(orders[student.slot]) for student in self.students if student.learns(step)}
            if step < self.state.global_step:
                continue
            if not mine:
                return
            yield [
                self._pass(parts)
                for index in range(max(map(len, mine.values()), default=0))
                for parts in self._plan_passes([(slot, own[index]) for slot, own in mine.items() if index < len(own)])
            ]

    def _plan_passes(self, parts: Sequence[_Part]) -> list[list[_Part]]:
        """Rows of about equal length together, whichever adapter's they are, and no more than the largest has alone.

        On a CPU at least ``CPU_PASS_ROWS``: every pass reads all weights.
        """
        rows = [(slot, example) for slot, examples in parts for example in examples]
        rows.sort(key=lambda row: len(row[1].prompt) + len(row[1].target))
        size = max(student.plan.config.batch_size for student in self.students)
        size = max(size, CPU_PASS_ROWS) if self.args.device.type == "cpu" else size
        passes = []
        for some in (rows[start : start + size] for start in range(0, len(rows), size)):
            own: dict[str, list[Example]] = {}
            for slot, example in some:
                own.setdefault(slot, []).append(example)
            passes.append(list(own.items()))
        return passes

    def _pass(self, parts: Sequence[_Part]) -> dict[str, Any]:
        """This process's share of some rows; where there is none, a row that does not count."""
        rank, world = self.args.process_index, self.args.world_size
        own = [(slot, examples[rank::world]) for slot, examples in parts if examples[rank::world]]
        idle = not own
        if idle:
            own = [(slot, examples[:1]) for slot, examples in parts[:1]]
        return {**self._batch(own), "idle": idle}

    def _batch(self, parts: Sequence[_Part]) -> dict[str, Any]:
        """Some rows of some adapters, packed where that can be, with ``blocks`` saying whose they are."""
        slots, rows = [slot for slot, _ in parts], [len(examples) for _, examples in parts]
        batch = self._collate([example for _, examples in parts for example in examples])

        def by_slot(by_row: Sequence[int]) -> list[int]:
            of_row = iter(by_row)
            return [sum(itertools.islice(of_row, count)) for count in rows]

        if not self._packed:
            lengths = batch.pop(LENGTHS, None)
            return {**batch, "blocks": RowBlocks(slots, rows, images=by_slot(lengths) if lengths else ())}
        batch = pack_rows(batch)

        positions = {stream: by_slot(counts) for stream, counts in batch.pop("row_positions").items()}
        return {**batch, "blocks": RowBlocks(slots, rows, positions, by_slot(batch.pop("row_labels")))}

    # --- steps ----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with groups of each adapter's own."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            groups = []
            for student in self.students:
                own = [(name, p) for name, p in self._weights_of(student).items() if p.requires_grad]
                for decays in (True, False):
                    chosen = [p for name, p in own if (name in decayed) is decays]
                    weight_decay = student.plan.config.weight_decay if decays else 0.0
                    rate = student.plan.config.learning_rate
                    groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay, "slot": student.slot})
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = cls([group for group in groups if group["params"]], **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Each adapter's own warm-up and cosine."""
        if self.lr_scheduler is None:
            target = optimizer or self.optimizer
            configs = {student.slot: student.plan.config for student in self.students}
            factors = {
                slot: get_cosine_schedule_with_warmup(
                    target, round(config.warmup_share * config.max_steps), config.max_steps
                ).lr_lambdas[0]
                for slot, config in configs.items()
            }
            for group in target.param_groups:
                group["lr"] = group["initial_lr"]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                target, [factors[group["slot"]] for group in target.param_groups]
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One step of every adapter that still learns: forward and backward through all its passes."""
        model.train()
        parts = self._prepare_inputs(inputs)
        counts = self._target_counts(parts)
        total = torch.zeros((), device=self.args.device)
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model=model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, part, num_items_in_batch=counts)
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _target_counts(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """How many targets each adapter's step has, over all micro-batches and processes."""
        by_slot = {student.slot: student for student in self.students}
        counts: dict[str, Tensor] = {}
        for part in parts:
            if part["idle"]:
                continue
            blocks: RowBlocks = part["blocks"]
            for slot, labels in zip(blocks.slots, blocks.split_labels(part["labels"]), strict=True):
                chosen = _own_columns(by_slot[slot], labels)
                counts[slot] = counts.get(slot, 0) + (chosen != IGNORED_LABEL).sum()
        learning = [s.slot for s in self.students if s.learns(self.state.global_step)]
        zero = torch.zeros((), dtype=torch.long, device=self.args.device)  # another process may have rows of it
        return {slot: self.accelerator.reduce(torch.as_tensor(counts.get(slot, 0)) + zero) for slot in learning}

    def model_loss(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """Every adapter's loss over its own rows, added up: their gradients do not meet."""
        counts = num_items_in_batch if isinstance(num_items_in_batch, Mapping) else None  # validation has none
        blocks = self._current.blocks
        by_slot = {student.slot: student for student in self.students}
        total: Tensor | float = 0.0
        parts = zip(blocks.slots, blocks.split_labels(outputs["logits"]), blocks.split_labels(labels), strict=True)
        for slot, logits, own in parts:
            student = by_slot[slot]
            targets = _own_columns(student, own)
            answered = logits if student.columns is None else logits[:, : targets.shape[1]]
            normalizer = counts[slot] if counts is not None else (targets != IGNORED_LABEL).sum()
            loss = student.family.loss(answered, targets, normalizer)
            if counts is not None and not self._idle:
                student.loss_sum += float(loss.detach())
            total = total + loss
        return torch.as_tensor(total * 0.0 if self._idle else total)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **_: Any
    ) -> Any:
        """See ``AdapterTrainer.compute_loss``."""
        inputs = dict(inputs)
        self._current.blocks, self._idle = inputs.pop("blocks"), inputs.pop("idle", False)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        norms = []
        for student in self.students:
            own = [p for p in self._weights_of(student).values() if p.grad is not None]
            if own:
                norms.append(self.accelerator.clip_grad_norm_(own, student.plan.config.max_grad_norm))
        return torch.stack([torch.as_tensor(norm) for norm in norms]).norm()

    # --- validation and checkpoints -------------------------------------------------------------------------------

    def validate(self, student: Student) -> float:
        """An adapter's loss on its validation examples: as ``Trainer`` does, the mean over batches by their rows."""
        model, examples = self.accelerator.unwrap_model(self.model).eval(), student.plan.data.validation
        total, size = torch.zeros((), dtype=torch.float64), student.plan.config.batch_size
        for start in range(self.args.process_index * size, len(examples), self.args.world_size * size):
            rows = examples[start : start + size]
            batch = self._prepare_inputs(self._batch([(student.slot, list(rows))]))
            with torch.no_grad(), self.compute_loss_context_manager():
                total += self.compute_loss(model, batch).cpu().double() * len(rows)
        return float(self.accelerator.reduce(total.to(self.args.device))) / len(examples)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate every adapter that took part in the last step; each is judged on its own."""
        step = self.state.global_step
        losses = {s.plan.name: self._judge(s) for s in self.students if s.learns(step - 1)}
        losses = {validation_key(name): loss for name, loss in losses.items()}
        losses |= {stopped_key(s.plan.name): s.stopped_at for s in self.students if s.stopped_at is not None}
        self.log(losses)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, losses)
        return losses

    def _judge(self, student: Student) -> float:
        loss = self.validate(student)
        student.judge(loss, self.state.global_step, self._weights_of(student))
        return loss

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        """Validate an adapter after its last step, too."""
        for student in self.students:
            ends = student.stopped_at is None and student.plan.config.max_steps == self.state.global_step
            judged = any(row["step"] == self.state.global_step and "eval_loss" in row for row in student.history)
            if ends and not judged and not self.control.should_evaluate:
                should_log = self.control.should_log  # which logging forgets
                self.log({validation_key(student.plan.name): self._judge(student)})
                self.control.should_log = should_log
        super()._maybe_log_save_evaluate(*arguments, **options)
        if not any(student.learns(self.state.global_step) for student in self.students):
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Beside the sum of all, each adapter's own training loss."""
        if "loss" in logs:
            step = self.state.global_step
            for student in self.students:
                shared = torch.tensor(student.loss_sum, device=self.args.device)  # this process may have had no rows
                total, steps = float(self.accelerator.reduce(shared)), step - student.summed_from
                if steps > 0 and step <= (student.stopped_at or student.plan.config.max_steps):
                    loss = total / steps
                    student.history.append({"step": step, "loss": loss})
                    logs[training_key(student.plan.name)] = loss
                student.loss_sum, student.summed_from = 0.0, step
        super().log(logs, *arguments, **options)

    def trained(self, student: Student) -> list[Tensor]:
        """What of an adapter is trained; of a head of its own, the last layer."""
        return [p for p in self._weights_of(student).values() if p.requires_grad]

    def _weights_of(self, student: Student) -> dict[str, Tensor]:
        return self._weights[student.slot]

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Give parameters these values."""
        put_weights(self.model, tensors)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: p for student in self.students for name, p in self._weights_of(student).items()}
        best = {f"best {name}": tensor for student in self.students for name, tensor in student.best.items()}
        save_file({name: t.detach().cpu().contiguous() for name, t in (tensors | best).items()}, folder / _WEIGHTS)
        states = {student.slot: student.state() for student in self.students}
        (folder / _STATE).write_text(json.dumps(states), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, self._resumed_from = Path(resume_from_checkpoint), resume_from_checkpoint
        tensors = load_file(folder / _WEIGHTS)
        self.put({name: tensor for name, tensor in tensors.items() if not name.startswith("best ")})
        states = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        for student in self.students:
            for key, value in states[student.slot].items():
                setattr(student, key, value)
            student.summed_from = int(folder.name.rpartition("-")[2])  # what was summed before is in no checkpoint
            best = {name.removeprefix("best "): t for name, t in tensors.items() if name.startswith("best ")}
            student.best = {name: tensor for name, tensor in best.items() if student.owns(name)}


class _Steps:
    """What ``Trainer`` takes for a loader of as many batches as there are steps."""

    def __init__(self, trainer: JointTrainer) -> None:
        self._trainer = trainer

    def __len__(self) -> int:
        return int(self._trainer.args.max_steps)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return self._trainer.joint_steps()


def _own_steps(student: Student) -> Iterator[list[list[Example]]]:
    """The steps of an adapter as ``Trainer`` deals them out: micro-batches of examples, epoch after epoch.

    The same in every process, each of which takes its share of each micro-batch: so it is one adapter that comes out,
    however many processes there are.
    """
    config, dataset = student.plan.config, make_dataset(student.plan.data.train)
    sampler = make_sampler(dataset, config.rows_per_image, config.seed)
    plain = DataLoader(dataset, config.batch_size, sampler=sampler, collate_fn=list)
    loader: Any = prepare_data_loader(
        plain, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=config.seed
    )
    for epoch in itertools.count():
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        batches = iter(loader)
        while step := list(itertools.islice(batches, config.gradient_accumulation)):
            yield step


def _own_columns(student: Student, labels: Tensor) -> Tensor:
    return labels if student.columns is None else labels[:, student.columns.to(labels.device)]
