"""LoRAX for vision-language models: LoRA adapters for BLIP-2, InstructBLIP and ViLT.

Imports inside the package point one way only:

scripts, cli > captioning, vqa, multimodal > exchange > workshop, measuring > training, runtime, evaluation, asking >
adapters > models, data > skills > types, settings, answers, versions, paths, fetching > errors, foreign

Names are imported on first use, so ``import lorax_vlm`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorax_vlm.adapters.recipe import Recipe
    from lorax_vlm.adapters.store import AdapterStore
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.data.images import load_image
    from lorax_vlm.data.scenes import make_scene, score_caption
    from lorax_vlm.errors import LoraxError
    from lorax_vlm.evaluation.sheet import draw_comparison_sheet
    from lorax_vlm.models.catalog import list_models
    from lorax_vlm.multimodal import MultiModalLoRAExchange
    from lorax_vlm.training.config import TrainConfig
    from lorax_vlm.types import Answer, Caption, GenerationSettings
    from lorax_vlm.vqa import VQASystem

__version__ = "0.1.0"

_HOMES = {
    "AdapterStore": "adapters.store",
    "Answer": "types",
    "BLIP2CaptioningSystem": "captioning",
    "Caption": "types",
    "GenerationSettings": "types",
    "LoraxError": "errors",
    "MultiModalLoRAExchange": "multimodal",
    "Recipe": "adapters.recipe",
    "TrainConfig": "training.config",
    "VQASystem": "vqa",
    "draw_comparison_sheet": "evaluation.sheet",
    "list_models": "models.catalog",
    "load_image": "data.images",
    "make_scene": "data.scenes",
    "score_caption": "data.scenes",
}

__all__ = [
    "AdapterStore",
    "Answer",
    "BLIP2CaptioningSystem",
    "Caption",
    "GenerationSettings",
    "LoraxError",
    "MultiModalLoRAExchange",
    "Recipe",
    "TrainConfig",
    "VQASystem",
    "draw_comparison_sheet",
    "list_models",
    "load_image",
    "make_scene",
    "score_caption",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorax_vlm' has no attribute {name!r}")
    return getattr(import_module(f"lorax_vlm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
