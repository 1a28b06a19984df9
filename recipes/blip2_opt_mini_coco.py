"""Makes a close relative of ``blip2-opt-mini``, as the hub's ``-coco`` checkpoints are to theirs. Under two minutes.

    python -m recipes.blip2_opt_mini_coco --out build/blip2-opt-mini-coco

The image path is tuned a little further, the vision encoder too, on plain captions of pictures with other contrasts and
noise; the language model stays frozen, as it did for the hub's. The shapes stay, the weights of the image path do not:
an adapter of ``blip2-opt-mini`` loads on it without a word in plain PEFT.
"""

import time

import torch
from transformers import Blip2Processor

from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from lorax_vlm.models.families.pictures import Picture
from lorax_vlm.models.loading import load_model
from recipes.card import measure_checkpoint
from recipes.checkpoint import parse_arguments, save
from recipes.optimizer import Optimizer
from recipes.scene_pool import load_pool

NAME = "blip2-opt-mini-coco"
STEPS = 150
BATCH = 32


def main() -> None:
    """Tune the image path further and save the checkpoint in half precision."""
    arguments = parse_arguments(__doc__, NAME)
    start = time.monotonic()
    base = load_model("blip2-opt-mini")
    model, family = base.model, base.family
    assert isinstance(family, Blip2DecoderFamily)
    processor: Blip2Processor = family.processor
    pool = load_pool("train", 2000, processor.image_processor, arguments.cache)
    model.requires_grad_(True)
    model.language_model.requires_grad_(False)
    torch.manual_seed(arguments.seed + 5)
    optimizer = Optimizer(model.parameters(), 2e-4, STEPS, "coco")
    for rows in pool.batches(BATCH, STEPS, arguments.seed + 5):
        captions = [pool.scenes[row].caption("plain") for row in rows.tolist()]
        pixels = pool.pixel_values(rows)
        contrast = 0.7 + 0.6 * torch.rand(len(pixels), 1, 1, 1)
        noisy = contrast * pixels + 0.3 * torch.randn_like(pixels)
        batch = family.training_batch([Picture({"pixel_values": row}) for row in noisy], [""] * BATCH, captions)
        labels = batch.pop("labels")
        optimizer.step(family.loss(model(**batch).logits, labels))
    save(model, model.config, processor, arguments.out)
    print(f"tuned in {time.monotonic() - start:.0f} s", flush=True)
    measure_checkpoint(arguments.out)


if __name__ == "__main__":
    main()
