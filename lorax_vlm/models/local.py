"""Where a checkpoint is on this machine, without loading or downloading anything. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.models.description import BaseDescription, describe_checkpoint
from lorax_vlm.models.fingerprint import find_fingerprint
from lorax_vlm.models.placement import MINIATURE_DTYPE
from lorax_vlm.models.places import find_folder


def describe_local(name: str) -> BaseDescription:
    """Describe a base that is on this machine: a miniature, a folder, or what the hub's cache holds.

    A miniature computes the same way everywhere; of the others it is not known before they are loaded.

    Raises:
        UnknownModel: The name is nothing known.
        CheckpointError: It is not here, or no supported checkpoint.
    """
    entry = get_model_entry(name)
    folder = require_checkpoint(entry)
    described = describe_checkpoint(folder, entry.name)
    return replace(described, dtype=MINIATURE_DTYPE, quantization="none") if entry.miniature else described


def require_checkpoint(entry: CatalogEntry) -> Path:
    """The folder of a checkpoint.

    Raises:
        CheckpointError: It is not on this machine.
    """
    folder = find_checkpoint(entry)
    if folder is None:
        raise CheckpointError(
            entry.name,
            [f"{entry.source} is not on this machine"],
            f"Fetch it and read its weights once: lorax-vlm models fingerprint {entry.name}",
        )
    return folder


def find_checkpoint(entry: CatalogEntry) -> Path | None:
    """The folder of a checkpoint, None when it is on the hub only."""
    return find_folder(entry.source)


def known_components(entry: CatalogEntry) -> Mapping[str, str] | None:
    """Digests of a base's weights, where it is here and they were read before; nothing is read for that."""
    folder = find_checkpoint(entry)
    try:
        found = find_fingerprint(folder) if folder is not None else None
    except CheckpointError:  # said where the base is used
        return None
    return found.components if found is not None else None
