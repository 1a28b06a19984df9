"""Training three caption styles: ours in one run, against the plain recipe, PEFT and ``Trainer``, one style at a time.

    python -m benchmarks.training --base blip2-opt-2.7b     # true shapes, random weights, written on first use
    python -m benchmarks.training --base blip2-flan-t5-xl
    python -m benchmarks.training --base blip2-opt-mini --images 96 --batch 16

The plain recipe is the usual one with its known errors mended, or it could not be compared: labels on the target only,
the frozen base in evaluation mode, the same loss. It sends pixels through the whole model in every step. Both ways see
the same rows in the same order for three epochs, with one validation at the start and one at the end, and their
adapters must agree. Each round trains both in turn; the fastest counts. Images are those of the scene world, at the
base's own size.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from benchmarks.options import parse
from benchmarks.random_checkpoints import checkpoint_of
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.skills import caption
from lorax_vlm.training.batches import ExampleDataset, FamilyCollator
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.students import AdapterPlan

STYLES = ("detailed", "concise", "creative")
EPOCHS = 3
RECIPE = Recipe("attention", 8, ("lm-attention",))


def train_ours(base: LoadedModel, data: dict[str, DataSplits], config: TrainConfig) -> dict[str, dict[str, Tensor]]:
    """All styles in one run, features kept on disk as always."""
    with tempfile.TemporaryDirectory() as folder:
        plans = [AdapterPlan(style, RECIPE, splits, config) for style, splits in data.items()]
        results = train_adapters(base, plans, Path(folder) / "run", progress=False, features_dir=Path(folder) / "cache")
        return {style: load_file(result.folder / "adapter_model.safetensors") for style, result in results.items()}


class PlainTrainer(Trainer):
    """``Trainer`` with dropout off in the frozen base."""

    def compute_loss(self, model: Any, *arguments: Any, **options: Any) -> Any:
        """As always."""
        return super().compute_loss(model.eval(), *arguments, **options)


def train_plain(base: LoadedModel, data: dict[str, DataSplits], config: TrainConfig) -> dict[str, dict[str, Tensor]]:
    """One style after the other."""
    found = {}
    for style, splits in data.items():
        torch.manual_seed(config.seed)
        lora = LoraConfig(
            r=RECIPE.rank, lora_alpha=RECIPE.effective_alpha, target_modules=RECIPE.pattern(base.family.name)
        )
        peft_model = get_peft_model(base.model, lora)
        with tempfile.TemporaryDirectory() as folder:
            trainer = PlainTrainer(
                model=peft_model,
                args=TrainingArguments(
                    output_dir=folder,
                    max_steps=config.max_steps,
                    per_device_train_batch_size=config.batch_size,
                    per_device_eval_batch_size=config.batch_size,
                    learning_rate=config.learning_rate,
                    lr_scheduler_type="cosine",
                    warmup_steps=round(config.warmup_share * config.max_steps),
                    weight_decay=config.weight_decay,
                    eval_strategy="steps",
                    eval_steps=config.max_steps,
                    save_steps=config.max_steps,
                    remove_unused_columns=False,
                    label_names=["labels"],
                    prediction_loss_only=True,
                    dataloader_pin_memory=False,
                    use_cpu=True,
                    seed=config.seed,
                    report_to="none",
                    disable_tqdm=True,
                ),
                train_dataset=ExampleDataset(list(splits.train)),
                eval_dataset=ExampleDataset(splits.validation),
                data_collator=FamilyCollator(base.family),
                compute_loss_func=lambda outputs, labels, num_items_in_batch=None: base.family.loss(
                    outputs["logits"], labels, num_items_in_batch
                ),
            )
            trainer.model_accepts_loss_kwargs = False
            trainer.remove_callback(PrinterCallback)
            trainer.evaluate()
            trainer.train()
        found[style] = {key: value.clone() for key, value in get_peft_model_state_dict(peft_model).items()}
        peft_model.unload()
        base.model.eval().requires_grad_(False)
    return found


def main() -> None:
    """Time both in turn and compare what they trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="blip2-opt-2.7b")
    parser.add_argument("--folder", type=Path, default=Path("build") / "fullsize")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parse(parser, base="blip2-opt-mini", images=2, batch=2, rounds=1)
    warnings.simplefilter("ignore")
    source = str(checkpoint_of(arguments.base, arguments.folder))
    base = load_model(source, device="cpu", quantize="none")
    data = {
        style: skill_splits(caption(style), arguments.images, 1).with_prompt(base.entry.caption_prompt)
        for style in STYLES
    }
    steps = EPOCHS * -(-arguments.images // arguments.batch)
    config = TrainConfig(steps, arguments.batch, learning_rate=1e-3, eval_every=steps, patience=None)
    samples = EPOCHS * arguments.images * len(STYLES)
    print(
        f"{arguments.base}, {base.placement.dtype}, {torch.get_num_threads()} threads: {len(STYLES)} styles, "
        f"{arguments.images} images, {EPOCHS} epochs, batches of {arguments.batch}, rank {RECIPE.rank}",
        flush=True,
    )
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        ours = train_ours(base, data, config)
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        plain = train_plain(base, data, config)
        times["plain"].append(time.perf_counter() - start)
        print({way: round(found[-1], 1) for way, found in times.items()}, flush=True)
    difference = max((ours[s][key] - plain[s][key]).abs().max().item() for s in STYLES for key in plain[s])
    size = max(value.abs().max().item() for key, value in plain[STYLES[0]].items() if "lora_B" in key)
    best = {way: min(found) for way, found in times.items()}
    for way, found in best.items():
        print(f"{way:<6} {found:7.1f} s   {samples / found:6.2f} samples/s")
    print(f"ours / plain, samples per second: {best['plain'] / best['ours']:.2f}")
    print(f"largest difference between the adapters {difference:.1e}, largest value of B {size:.1e}")


if __name__ == "__main__":
    main()
