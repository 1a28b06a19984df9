"""One image by the base and by N adapters: ours in one batch, against PEFT's ``set_adapter``, one after another.

    python -m benchmarks.compare_image                                # blip2-opt-mini
    python -m benchmarks.compare_image --base blip2-opt-2.7b --tokens 8   # true shapes, random weights

PEFT's way sends the image through the whole model once per adapter, as ``generate`` does. Both are greedy. How
many captions agree is printed: in float32 all must; in bfloat16 a batch rounds otherwise than a row alone.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL.Image import Image

from benchmarks.options import parse
from benchmarks.random_checkpoints import checkpoint_of
from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.attached import AttachedAdapters
from lorax_vlm.types import GenerationSettings


def write_adapters(base: LoadedModel, folder: Path, count: int) -> list[Path]:
    """Adapters with random factors on the attention sites, as PEFT saves them."""
    recipe = get_recipe("medium")
    for index in range(count):
        torch.manual_seed(index)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.effective_alpha,
            target_modules=recipe.pattern(base.family.name),
            init_lora_weights=False,
        )
        model = get_peft_model(base.model, config)
        model.save_pretrained(str(folder / f"a{index}"), save_embedding_layers=False)
        model.unload()
    base.model.eval().requires_grad_(False)
    return [folder / f"a{index}" for index in range(count)]


def ask_ours(base: LoadedModel, folders: list[Path], picture: Image, tokens: int) -> tuple[list[str], float]:
    """Captions by the base and every adapter, and the seconds they took."""
    attached = AttachedAdapters(base)
    for folder in folders:
        attached.attach(folder.name, folder)
    rows = [None, *(folder.name for folder in folders)]
    settings = GenerationSettings(max_new_tokens=tokens, min_new_tokens=tokens, num_beams=1)
    prompts = [base.entry.caption_prompt] * len(rows)
    start = time.perf_counter()
    found = attached.generate(rows, [picture] * len(rows), prompts, settings)
    elapsed = time.perf_counter() - start
    attached.detach_all()
    return [generated.text for generated in found], elapsed


def ask_peft(base: LoadedModel, folders: list[Path], picture: Image, tokens: int) -> tuple[list[str], float]:
    """The same by PEFT."""
    model = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name=folders[0].name)
    for folder in folders[1:]:
        model.load_adapter(str(folder), adapter_name=folder.name)
    model.eval()
    family: Any = base.family
    pixels = family.pixel_batch(family.prepare([picture]))["pixel_values"].to(base.model.dtype)
    texts: list[str] = []

    def caption() -> None:
        batch = family.prompt_batch([base.entry.caption_prompt])
        lengths = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        ids = model.generate(pixel_values=pixels, **batch, **lengths, num_beams=1, do_sample=False)
        texts.append(base.family.tokenizer.decode(ids[0], skip_special_tokens=True).strip())

    start = time.perf_counter()
    with model.disable_adapter():
        caption()
    for folder in folders:
        model.set_adapter(folder.name)
        caption()
    elapsed = time.perf_counter() - start
    model.unload()
    base.model.eval().requires_grad_(False)
    return texts, elapsed


@torch.inference_mode()
def main() -> None:
    """Time both in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="blip2-opt-mini")
    parser.add_argument("--folder", type=Path, default=Path("build") / "fullsize")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parse(parser, adapters=2, tokens=3, rounds=1)
    warnings.simplefilter("ignore")
    source = str(checkpoint_of(arguments.base, arguments.folder))
    base, picture = load_model(source, device="cpu", quantize="none"), make_scene(5).image
    times: dict[str, list[float]] = {"ours": [], "PEFT": []}
    with tempfile.TemporaryDirectory() as scratch:
        folders = write_adapters(base, Path(scratch), arguments.adapters)
        for _ in range(arguments.rounds):
            found, seconds = ask_ours(base, folders, picture, arguments.tokens)
            times["ours"].append(seconds)
            expected, seconds = ask_peft(base, folders, picture, arguments.tokens)
            times["PEFT"].append(seconds)
    best = {way: min(seconds) for way, seconds in times.items()}
    agree = sum(mine == other for mine, other in zip(found, expected, strict=True))
    print(
        f"{arguments.base}, {base.placement.dtype}, {torch.get_num_threads()} threads: one image, the base and "
        f"{arguments.adapters} adapters, {arguments.tokens} tokens each"
    )
    for way, found_best in best.items():
        print(f"{way:<5} {found_best:8.2f} s")
    print(f"PEFT / ours: {best['PEFT'] / best['ours']:.1f}; {agree} of {len(found)} captions equal")


if __name__ == "__main__":
    main()
