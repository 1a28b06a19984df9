"""Kept for those who import from here; see ``readers.hub``."""

from lorax_vlm.data.readers.hub import read_hub_dataset

__all__ = ["read_hub_dataset"]
