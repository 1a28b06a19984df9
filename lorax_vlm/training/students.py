"""The adapters of one run, each with its own data, steps and end."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peft import PeftModel
from torch import Tensor

from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import save_adapter
from lorax_vlm.training.progress import Sample, Sampler


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter that is to be trained, alone or with others."""

    name: str
    recipe: Recipe
    data: DataSplits
    config: TrainConfig
    labels: Sequence[str] = ()
    """Of a family that chooses: the answers of a head of the adapter's own; those of the checkpoint first."""
    purpose: Mapping[str, Any] = field(default_factory=dict)
    """What else must be equal for a run to be continued, such as the prompt."""
    sample: Callable[[Path], Sequence[Sample]] | None = None
    """What an adapter in a folder says of some validation examples, asked whenever its loss on them is measured. None:
    it is not asked, for that takes an engine; ``workshop.sampling`` makes one as ``config.samples`` wants it."""

    def sampler(self, base: LoadedModel, peft_model: PeftModel, slot: str = "default") -> Sampler | None:
        """Asks the adapter that is being trained, as it is now; None where that is not wanted."""
        return partial(_sample, self.sample, peft_model, base, slot) if self.sample is not None else None


def _sample(
    ask: Callable[[Path], Sequence[Sample]], peft_model: PeftModel, base: LoadedModel, slot: str
) -> Sequence[Sample]:
    with TemporaryDirectory(prefix="lorax-sample-") as scratch:
        return ask(save_adapter(peft_model, base, Path(scratch), slot))


@dataclass
class Student:
    """An adapter while it is trained."""

    plan: AdapterPlan
    slot: str
    """PEFT's name for it, which may not contain dots."""
    family: Family
    columns: Tensor | None
    """Of a family that chooses: the columns of the union of all labels that this adapter's head answers with."""
    loss_sum: float = 0.0
    """Of the steps after ``summed_from``."""
    summed_from: int = 0
    best_loss: float = math.inf
    waited: int = 0
    stopped_at: int | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the best validated step."""
    beginning: dict[str, Tensor] = field(default_factory=dict)
    """Weights before the first step."""
    history: list[dict[str, Any]] = field(default_factory=list)

    def learns(self, step: int) -> bool:
        """Whether it takes part in the step after ``step``."""
        return self.stopped_at is None and step < self.plan.config.max_steps

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of the PEFT model is this adapter's."""
        return f".{self.slot}." in parameter

    def judge(self, loss: float, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the best weights; stop when they have not improved for long."""
        self.history.append({"step": step, "eval_loss": loss})
        if loss < self.best_loss:
            self.best_loss, self.waited = loss, 0
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        else:
            self.waited += 1
            patience = self.plan.config.patience
            if patience is not None and self.waited >= patience:
                self.stopped_at = step

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beside the weights."""
        return {key: getattr(self, key) for key in ("best_loss", "waited", "stopped_at", "history")}
