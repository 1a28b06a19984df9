"""One optimiser and schedule for every stage: AdamW, linear warm-up, cosine decay, clipping at 1."""

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Optimizer:
    """Steps a list of parameters and prints the loss now and then."""

    def __init__(self, parameters: Iterable[nn.Parameter], peak_rate: float, steps: int, label: str) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.adamw = torch.optim.AdamW(self.parameters, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
        warmup = max(1, steps // 12)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.adamw,
            lambda step: min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3,
        )
        self.steps, self.label, self.step_index, self.start = steps, label, 0, time.monotonic()

    def step(self, loss: Tensor) -> None:
        """Backward, clip, update."""
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adamw.step()
        self.schedule.step()
        if self.step_index % 50 == 0 or self.step_index == self.steps - 1:
            elapsed = time.monotonic() - self.start
            print(f"{self.label:<10} step {self.step_index:>5}  loss {loss.item():.4f}  {elapsed:6.0f} s", flush=True)
        self.step_index += 1
