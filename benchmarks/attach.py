"""Attaching a rank-8 adapter to full-size BLIP-2 OPT-2.7B: ours against PEFT's ``load_adapter``.

    python -m benchmarks.attach --folder build/fullsize

The base has random weights at its true size (written on first use, 7.5 GB, kept). The adapter is saved by plain PEFT,
query and value of every language layer. Both ways attach it to a base that already has another adapter and take it off
again, in turn; ours includes reading and checking every value of the file. The fastest of several rounds counts.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.options import parse
from benchmarks.random_checkpoints import checkpoint_of
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.attached import AttachedAdapters

NAME = "blip2-opt-2.7b"
SITES = r"language_model\.model\.decoder\.layers\.\d+\.self_attn\.(q_proj|v_proj)"


def write_adapters(base: LoadedModel, folder: Path, rank: int) -> list[Path]:
    """Two adapters with random factors, as PEFT saves them."""
    paths = []
    for name in ("first", "second"):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=SITES, init_lora_weights=False)
        model = get_peft_model(base.model, config)
        model.save_pretrained(str(folder / name), save_embedding_layers=False)
        model.unload()
        paths.append(folder / name)
    base.model.requires_grad_(False)
    return paths


def main() -> None:
    """Time both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=NAME)
    parser.add_argument("--folder", type=Path, default=Path("build") / "fullsize")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parse(parser, base="blip2-opt-mini", rounds=1)
    warnings.simplefilter("ignore")
    base = load_model(str(checkpoint_of(arguments.base, arguments.folder)), device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        first, second = write_adapters(base, Path(scratch), arguments.rank)
        size = (second / "adapter_model.safetensors").stat().st_size
        times: dict[str, list[float]] = {"ours": [], "PEFT load_adapter": []}
        for _ in range(arguments.rounds):
            attached = AttachedAdapters(base)
            attached.attach("first", first)
            start = time.perf_counter()
            attached.attach("second", second)
            times["ours"].append(time.perf_counter() - start)
            attached.detach_all()
            peft_model = PeftModel.from_pretrained(base.model, str(first), adapter_name="first")
            start = time.perf_counter()
            peft_model.load_adapter(str(second), adapter_name="second")
            times["PEFT load_adapter"].append(time.perf_counter() - start)
            peft_model.unload()
            base.model.requires_grad_(False)
    best = {name: min(found) for name, found in times.items()}
    print(f"{arguments.base}, rank {arguments.rank}, {size:,} bytes, {torch.get_num_threads()} threads")
    for name, found in best.items():
        print(f"{name:<18} {found * 1e3:8.1f} ms")
    print(f"PEFT / ours: {best['PEFT load_adapter'] / best['ours']:.1f}")


if __name__ == "__main__":
    main()
