"""Kept for those who import from here; see ``readers.folder``."""

from lorax_vlm.data.readers.folder import read_image_folder

__all__ = ["read_image_folder"]
