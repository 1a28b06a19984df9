"""The class that handles the tensors of a checkpoint."""

import importlib
from typing import Any, cast

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.spec import ARCHITECTURES, Architecture, architecture_of


def find_architecture(config: Any, checkpoint: str) -> Architecture:
    """The row of a configuration.

    Raises:
        CheckpointError: It is of no supported architecture.
    """
    text_type = getattr(getattr(config, "text_config", None), "model_type", None)
    row = architecture_of(config.model_type, text_type)
    if row is None:
        supported = ", ".join(map(str, ARCHITECTURES.values()))
        with_text = f" with text model {text_type}" if text_type else ""
        raise CheckpointError(
            checkpoint, [f"its architecture is {config.model_type}{with_text}; supported: {supported}"]
        )
    return row


def family_class(row: Architecture) -> type[Family]:
    """The class that a row names."""
    module, _, name = row.implementation.partition(":")
    return cast(type[Family], getattr(importlib.import_module(module), name))
