"""Where concatenated factors stop being faster than gathered ones: the measured constant of ``runtime/routed.py``.

python -m benchmarks.routing_strategy
"""

import argparse
import time
from collections.abc import Callable

import torch

from lorax_vlm.runtime import routed as module
from lorax_vlm.runtime.routed import Routing
from lorax_vlm.runtime.weights import AdapterWeights

WIDTH, RANK = 768, 8


def measure(call: Callable[[], object], repeats: int = 20, rounds: int = 3) -> float:
    """Best mean time of a call in microseconds."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        times.append((time.perf_counter() - start) / repeats)
    return min(times) * 1e6


@torch.inference_mode()
def main() -> None:
    """Time one layer's update both ways and print them with the constant's choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    limit = module.MAX_CONCATENATED
    print(f"width {WIDTH}, rank {RANK}, {torch.get_num_threads()} threads; microseconds per layer")
    print("rows  positions  adapters  layer  concatenated  gathered  chosen")
    for rows in (4, 16, 64):
        for positions in (1, 4, 40):
            for count in (1, 2, 4, 8, 16, 32, 64):
                if count > rows:
                    continue
                adapters = [
                    AdapterWeights({"site": (torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK))}) for _ in range(count)
                ]
                x, weight = torch.randn(rows, positions, WIDTH), torch.randn(WIDTH, WIDTH)
                routing = Routing([adapters[row % count] for row in range(rows)])
                output = torch.nn.functional.linear(x, weight)
                times = {}
                for way, forced in (("concatenated", 10**9), ("gathered", 0)):
                    module.MAX_CONCATENATED = forced
                    times[way] = measure(lambda r=routing, x=x, o=output: r.add_update("site", x, o))  # type: ignore[misc]
                module.MAX_CONCATENATED = limit
                layer = measure(lambda x=x, w=weight: torch.nn.functional.linear(x, w))  # type: ignore[misc]
                chosen = "gathered" if count * positions > limit else "concatenated"
                print(
                    f"{rows:4}  {positions:9}  {count:8}  {layer:5.0f}  {times['concatenated']:12.0f}"
                    f"  {times['gathered']:8.0f}  {chosen}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
