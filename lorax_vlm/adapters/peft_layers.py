"""PEFT's layers on a base model, without its noise."""

import warnings
from typing import Any

from peft import LoraConfig, PeftModel


def add_peft_layers(model: Any, config: LoraConfig, slot: str) -> PeftModel:
    """Put a new adapter's layers on a plain model; ``PeftModel.unload`` takes them off again."""
    with warnings.catch_warnings():
        # PEFT asks transformers by an old name; nothing a user can act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return PeftModel(model, config, adapter_name=slot)
