"""Stage 4 of ``blip2-opt-mini``: its language model learns where each mentioned object is, and to tell sides.

    python -m recipes.sides build/blip2-opt-mini --out build/blip2-opt-mini-final

Until here a base answers about one object at a time, found at the very end of a prompt. After this stage the place of
each object is known where it is mentioned (``mentions.py``), and the base can say whether an object is on the left. It
still was never asked to compare two objects, but an adapter can now learn to. The other bases learn this in stage 3.
"""

import argparse
from pathlib import Path

from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from lorax_vlm.models.loading import load_model
from recipes.card import measure_checkpoint
from recipes.checkpoint import save
from recipes.miniature import make_image_processor
from recipes.packed_language import train_packed_language
from recipes.scene_pool import load_pool
from recipes.turns import caption_turns, with_sides

STEPS = 800
SEED = 4


def train_sides(folder: Path, out: Path, cache: Path, scenes: int = 24_000) -> None:
    """Train a stored miniature further, save it in half precision, measure it and write its card."""
    base = load_model(str(folder), dtype="float32")
    model, family, prompt = base.model, base.family, base.entry.question_template
    assert isinstance(family, Blip2DecoderFamily)
    model.language_model.requires_grad_(True)
    pool = load_pool("train", scenes, make_image_processor(), cache)
    turns = with_sides(caption_turns)
    train_packed_language(model, family, pool, None, turns, prompt, STEPS, SEED, mention_weight=0.3)
    save(model, model.config, family.processor, out)
    measure_checkpoint(out)


def main() -> None:
    """Continue a checkpoint of stage 3."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build") / "scenes", help="rendered scenes")
    parser.add_argument("--scenes", type=int, default=24_000, help="number of training scenes")
    arguments = parser.parse_args()
    train_sides(arguments.folder, arguments.out, arguments.cache, arguments.scenes)


if __name__ == "__main__":
    main()
