"""Kept for those who import from here; see ``readers.unlabelled``."""

from lorax_vlm.data.readers.unlabelled import read_unlabelled

__all__ = ["read_unlabelled"]
