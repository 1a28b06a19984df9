"""One batch with several adapters: ours, PEFT's mixed batch, one adapter after another, and merged weights.

    python -m benchmarks.mixed_batch                          # OPT-125M shape, 16 rows, 8 adapters, rank 8
    python -m benchmarks.mixed_batch --rows 64 --adapters 64  # every row its own adapter

A language model of random weights in the shape of OPT-125M generates 24 tokens after 16 given ones, greedily, with
attention sites adapted. All ways run in turn in this process on the same rows; the fastest of several rounds counts.
Before anything is timed, all ways must have given the same tokens.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GenerationConfig, OPTConfig, OPTForCausalLM

from benchmarks.options import parse
from lorax_vlm.runtime.routed import RoutedLinear, routed
from lorax_vlm.runtime.weights import AdapterWeights

PROMPT_TOKENS, NEW_TOKENS = 16, 24
SITES = ("q_proj", "k_proj", "v_proj", "out_proj")


def make_model() -> OPTForCausalLM:
    """OPT-125M's shape, random weights, the same at every call."""
    torch.manual_seed(0)
    return OPTForCausalLM(OPTConfig()).eval().requires_grad_(False)


def make_adapters(model: OPTForCausalLM, count: int, rank: int) -> list[AdapterWeights]:
    """Adapters with random factors on the attention sites."""
    generator = torch.Generator().manual_seed(1)
    sites = [name for name, _ in model.named_modules() if name.endswith(SITES)]
    width = model.config.hidden_size

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.05

    return [AdapterWeights({site: (random(rank, width), random(width, rank)) for site in sites}) for _ in range(count)]


def generate(model: Any, ids: Tensor, **options: object) -> Tensor:
    """Greedy tokens ``(B, NEW_TOKENS)``."""
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, pad_token_id=1)  # no end token: always all of them
    model.generation_config.eos_token_id = None
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **options)
    return output[:, ids.shape[1] :]


def make_peft(adapters: list[AdapterWeights], rank: int) -> PeftModel:
    """The same adapters in plain PEFT."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(SITES))
    model = get_peft_model(make_model(), config, adapter_name="a0")
    for index in range(1, len(adapters)):
        model.add_adapter(f"a{index}", config)
    for index, weights in enumerate(adapters):
        for site, (a, b) in weights.factors.items():
            layer = model.base_model.model.get_submodule(site)
            layer.lora_A[f"a{index}"].weight.data.copy_(a)
            layer.lora_B[f"a{index}"].weight.data.copy_(b)
    return model.eval()


def make_merged(weights: AdapterWeights) -> OPTForCausalLM:
    """The base with one adapter added to its weights."""
    model = make_model()
    for site, (a, b) in weights.factors.items():
        model.get_submodule(site).weight.data += b @ a
    return model


@torch.inference_mode()
def main() -> None:
    """Check that all ways agree, then time them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-ours", action="store_true", help="leave out PEFT, one after another, and merged")
    arguments = parse(parser, rows=2, adapters=2, rounds=1)
    if arguments.smoke:
        globals()["NEW_TOKENS"] = 2
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    rows, count = arguments.rows, arguments.adapters
    base = make_model()
    adapters = make_adapters(base, count, arguments.rank)
    ours = make_model()
    for site in adapters[0].factors:
        ours.set_submodule(site, RoutedLinear(ours.get_submodule(site), site))
    ids = torch.randint(10, 50_000, (rows, PROMPT_TOKENS), generator=torch.Generator().manual_seed(2))
    owners = [row % count for row in range(rows)]

    def with_routing(weights: list[AdapterWeights]) -> Tensor:
        with routed(weights):
            return generate(ours, ids)

    ways: dict[str, Callable[[], Tensor]] = {
        "plain base": lambda: generate(base, ids),
        "ours, one adapter": lambda: with_routing([adapters[0]] * rows),
        "ours, mixed": lambda: with_routing([adapters[owner] for owner in owners]),
    }
    if not arguments.only_ours:
        peft = make_peft(adapters, arguments.rank)
        merged = make_merged(adapters[0])

        def one_after_another() -> Tensor:
            tokens = torch.empty(rows, NEW_TOKENS, dtype=torch.long)
            for index, weights in enumerate(adapters):
                mine = [row for row in range(rows) if owners[row] == index]
                with routed([weights]):
                    tokens[mine] = generate(ours, ids[mine])
            return tokens

        ways["PEFT, mixed"] = lambda: generate(peft, ids, adapter_names=[f"a{owner}" for owner in owners])
        ways["one adapter after another"] = one_after_another
        ways["merged weights, one adapter"] = lambda: generate(merged, ids)
    tokens = {name: way() for name, way in ways.items()}
    mixed = tokens["ours, mixed"]
    for name in ("PEFT, mixed", "one adapter after another"):
        if name in tokens and not torch.equal(tokens[name], mixed):
            raise SystemExit(f"{name} gives other tokens than ours")
    if torch.equal(mixed, tokens["plain base"]):
        raise SystemExit("the adapters change nothing")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    best = {name: min(found) for name, found in times.items()}
    print(
        f"OPT-125M shape, random weights, float32, {torch.get_num_threads()} threads; {rows} rows, {count} adapters, "
        f"rank {arguments.rank}, {NEW_TOKENS} new tokens; fastest of {arguments.rounds}"
    )
    for name, found in best.items():
        print(f"{name:<28} {found:7.3f} s   {found / best['ours, mixed']:5.2f} x ours, mixed")
    print(f"mixed / one adapter: {best['ours, mixed'] / best['ours, one adapter']:.3f}")


if __name__ == "__main__":
    main()
