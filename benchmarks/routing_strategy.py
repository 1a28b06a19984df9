"""Where concatenated factors stop being faster than gathered ones: the measured constant of ``runtime/routed.py``.

    python -m benchmarks.routing_strategy

As in a model, every layer has factors of its own: they come from memory, not from the cache.
"""

import argparse
import time
from collections.abc import Callable

import torch

from benchmarks.options import parse
from lorax_vlm.runtime import routed as module
from lorax_vlm.runtime.routed import Routing
from lorax_vlm.runtime.weights import AdapterWeights

WIDTH, RANK, LAYERS = 768, 8, 48


def measure(call: Callable[[str], object], rounds: int = 5) -> float:
    """Best mean time per layer in microseconds."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for layer in range(LAYERS):
            call(f"layer {layer}")
        times.append((time.perf_counter() - start) / LAYERS)
    return min(times[1:]) * 1e6


def random_adapter() -> AdapterWeights:
    """One adapter of all layers."""
    factors = {f"layer {i}": (torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK)) for i in range(LAYERS)}
    return AdapterWeights(factors)


@torch.inference_mode()
def main() -> None:
    """Time one layer's update both ways and print them with the constant's choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parse(parser, threads=1)
    torch.set_num_threads(arguments.threads)
    limit = module.MAX_CONCATENATED
    weights = {f"layer {i}": torch.randn(WIDTH, WIDTH) for i in range(LAYERS)}
    print(f"width {WIDTH}, rank {RANK}, {torch.get_num_threads()} threads; microseconds per layer")
    print("rows  positions  adapters  layer  concatenated  gathered  chosen")
    for rows in (4,) if arguments.smoke else (4, 16, 64):
        for positions in (1,) if arguments.smoke else (1, 4, 40):
            for count in (1, 2, 4, 8, 16, 64):
                if count > rows:
                    continue
                adapters = [random_adapter() for _ in range(count)]
                x = torch.randn(rows, positions, WIDTH)
                routing = Routing([adapters[row % count] for row in range(rows)])
                output = torch.randn(rows, positions, WIDTH)
                times = {}
                for way, forced in (("concatenated", 10**9), ("gathered", 0)):
                    module.MAX_CONCATENATED = forced
                    times[way] = measure(lambda layer, r=routing, x=x, o=output: r.add_update(layer, x, o))  # type: ignore[misc]
                module.MAX_CONCATENATED = limit
                layer = measure(lambda name, x=x: torch.nn.functional.linear(x, weights[name]))  # type: ignore[misc]
                chosen = "gathered" if count * min(positions, 2) > limit else "concatenated"
                print(
                    f"{rows:4}  {positions:9}  {count:8}  {layer:5.0f}  {times['concatenated']:12.0f}"
                    f"  {times['gathered']:8.0f}  {chosen}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
