"""Kept for those who import from here; see ``readers.documents``."""

from lorax_vlm.data.readers.documents import read_coco_captions, read_vqav2

__all__ = ["read_coco_captions", "read_vqav2"]
