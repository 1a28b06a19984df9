"""Settings of a training run. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.types import require_flag, require_number, require_texts, require_whole

_UNRECORDED = ("report_to", "samples")
SEED_LIMIT = 2**32
"""Seeds are below it: what the libraries' generators take."""


@dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained, with all that is not named as it stands here.

    The defaults suit a few hundred to a few thousand captions on a real checkpoint; a miniature wants others. To change
    some of what is usual for a base give a mapping, ``config={"samples": 3}``, wherever a ``TrainConfig`` is taken.
    """

    max_steps: int = 500
    """Optimiser steps. Early stopping may end sooner."""
    batch_size: int = 8
    """Rows per forward pass."""
    gradient_accumulation: int = 1
    """Forward passes per step; the result equals one pass of batch_size * gradient_accumulation rows."""
    learning_rate: float = 2e-4
    """Peak rate, reached after the warm-up, then falling to zero on a cosine."""
    warmup_share: float = 0.05
    """Share of the steps spent warming up."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    eval_every: int = 50
    """Steps between measurements of the validation loss; each is also a checkpoint to resume from."""
    patience: int | None = 5
    """Stop after this many measurements without a better validation loss. None: never."""
    seed: int = 0
    """Order of the examples and initial adapter weights."""
    rows_per_image: int = 1
    """Up to so many rows of an image follow each other. More are faster where the image path is trained, because an
    image is encoded once for all rows of a batch, and make batches less varied."""
    mixed_precision: bool = False
    """Compute in bfloat16 where that is safe, on a base of float32. A base of bfloat16 needs it not."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of layers for the backward pass and compute the rest again: less memory, more time."""
    report_to: tuple[str, ...] = ()
    """Trackers that the losses are sent to, by the names of transformers: ``tensorboard``, ``wandb``, ``trackio``, ...
    It changes nothing that is learnt, and is not recorded."""
    samples: int = 0
    """Validation examples that the adapter is asked about whenever its loss on them is measured. It changes nothing
    that is learnt, and is not recorded."""

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation", "eval_every", "rows_per_image"):
            require_whole(name, getattr(self, name), 1)
        for name in ("mixed_precision", "gradient_checkpointing"):
            require_flag(name, getattr(self, name))
        for name in ("seed", "samples"):
            require_whole(name, getattr(self, name), 0)
        if self.seed >= SEED_LIMIT:
            raise UsageError(f"seed must be below {SEED_LIMIT}, got {self.seed}.")
        require_texts("report_to", self.report_to)
        object.__setattr__(self, "report_to", tuple(self.report_to))
        if self.patience is not None:
            require_whole("patience", self.patience, 1)
        for name in ("learning_rate", "max_grad_norm"):
            require_number(name, getattr(self, name), lambda value: value > 0, "above 0")
        require_number("weight_decay", self.weight_decay, lambda value: value >= 0, "of at least 0")
        require_number("warmup_share", self.warmup_share, lambda value: 0 <= value < 1, "from 0 up to 1")

    def changed(self, changes: Mapping[str, Any]) -> "TrainConfig":
        """With other values of some settings.

        Raises:
            UsageError: There is no such setting, or it is no such value.
        """
        known = list(asdict(self))
        if unknown := [name for name in changes if name not in known]:
            raise UsageError(f"There is no training setting {quoted(unknown[0])}; known: {', '.join(known)}.")
        return replace(self, **changes)

    def with_steps(self, steps: int) -> "TrainConfig":
        """With another number of steps, measured at their end at the latest."""
        require_whole("max_steps", steps, 1)
        return replace(self, max_steps=steps, eval_every=min(self.eval_every, steps))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for records: what decides what is learnt."""
        return {name: value for name, value in asdict(self).items() if name not in _UNRECORDED}


MINI_CONFIG = TrainConfig(max_steps=200, batch_size=32, learning_rate=8e-3, eval_every=50, patience=None)
"""What the miniatures learn a style with in about a minute."""

MINI_CAPTION_CONFIGS = {
    "blip2-opt-mini": MINI_CONFIG,
    "blip2-flan-mini": replace(MINI_CONFIG, max_steps=600, learning_rate=3e-3, eval_every=150),
    "instructblip-mini": replace(MINI_CONFIG, max_steps=400, learning_rate=4e-3, eval_every=100),
}
"""For a style, by name."""

OWN_CAPTION_CONFIGS = {
    name: replace(config, max_steps=3 * config.max_steps, patience=4) for name, config in MINI_CAPTION_CONFIGS.items()
}
"""For captions of pictures of somebody's own, which take longer to learn than scenes, by name."""

_MINI_VQA = TrainConfig(max_steps=600, batch_size=64, learning_rate=1.5e-3, eval_every=100, patience=None)
MINI_VQA_CONFIGS = {
    "blip2-opt-mini": replace(_MINI_VQA, max_steps=700),
    "blip2-flan-mini": replace(_MINI_VQA, learning_rate=1e-3, max_steps=900),
    "instructblip-mini": _MINI_VQA,
    "vilt-mini": replace(_MINI_VQA, learning_rate=2e-3, max_steps=420, eval_every=70),
}
"""For a skill of question answering on the miniatures, by name. Higher rates teach counting, but not to compare two
objects."""

_OWN = TrainConfig(max_steps=1500, batch_size=64, learning_rate=2e-3, eval_every=150, patience=4)
OWN_QUESTION_CONFIGS = {
    "blip2-opt-mini": replace(_OWN, max_steps=2000, eval_every=200),
    "blip2-flan-mini": replace(_OWN, learning_rate=1.2e-3, max_steps=2400, eval_every=200),
    "instructblip-mini": replace(_OWN, max_steps=900),
    "vilt-mini": _OWN,
}
"""For questions about pictures of somebody's own on the miniatures, by name, with what ``training.defaults`` adapts.
Twice the rate gets stuck; several rows of an image after each other are faster and generalise less."""
