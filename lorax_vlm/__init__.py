"""LoRAX for vision-language models: LoRA adapters for BLIP-2, InstructBLIP and ViLT.

Imports inside the package point one way only:

scripts, cli > captioning, vqa, multimodal > workspace > reports > exchange > measuring > workshop > training, runtime,
evaluation, sharing > asking > adapters > models, data > skills > requests > types, settings, answers, versions, paths,
fetching > errors > foreign

Names are imported on first use, so ``import lorax_vlm`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorax_vlm.adapters.recipe import Recipe
    from lorax_vlm.adapters.store import AdapterStore
    from lorax_vlm.captioning import BLIP2CaptioningSystem
    from lorax_vlm.data.examples import DataSplits, Example
    from lorax_vlm.data.images import load_image
    from lorax_vlm.data.scenes import make_scene, score_caption
    from lorax_vlm.data.sources import read_data
    from lorax_vlm.errors import LoraxError, UsageError
    from lorax_vlm.models.catalog import list_models
    from lorax_vlm.multimodal import MultiModalLoRAExchange
    from lorax_vlm.reports.sheet import draw_comparison_sheet
    from lorax_vlm.requests import Request, Result
    from lorax_vlm.runtime.fake import FakeEngine
    from lorax_vlm.skills import Skill, answer, caption, instruct
    from lorax_vlm.training.config import TrainConfig
    from lorax_vlm.types import Answer, Caption, GenerationSettings
    from lorax_vlm.vqa import VQASystem
    from lorax_vlm.workspace import Workspace

__version__ = "0.1.0"

_HOMES = {
    "AdapterStore": "adapters.store",
    "Answer": "types",
    "BLIP2CaptioningSystem": "captioning",
    "Caption": "types",
    "DataSplits": "data.examples",
    "Example": "data.examples",
    "FakeEngine": "runtime.fake",
    "GenerationSettings": "types",
    "LoraxError": "errors",
    "MultiModalLoRAExchange": "multimodal",
    "Recipe": "adapters.recipe",
    "Request": "requests",
    "Result": "requests",
    "Skill": "skills",
    "TrainConfig": "training.config",
    "UsageError": "errors",
    "VQASystem": "vqa",
    "Workspace": "workspace",
    "answer": "skills",
    "caption": "skills",
    "draw_comparison_sheet": "reports.sheet",
    "instruct": "skills",
    "list_models": "models.catalog",
    "load_image": "data.images",
    "make_scene": "data.scenes",
    "read_data": "data.sources",
    "score_caption": "data.scenes",
}

__all__ = [
    "AdapterStore",
    "Answer",
    "BLIP2CaptioningSystem",
    "Caption",
    "DataSplits",
    "Example",
    "FakeEngine",
    "GenerationSettings",
    "LoraxError",
    "MultiModalLoRAExchange",
    "Recipe",
    "Request",
    "Result",
    "Skill",
    "TrainConfig",
    "UsageError",
    "VQASystem",
    "Workspace",
    "answer",
    "caption",
    "draw_comparison_sheet",
    "instruct",
    "list_models",
    "load_image",
    "make_scene",
    "read_data",
    "score_caption",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorax_vlm' has no attribute {name!r}")
    return getattr(import_module(f"lorax_vlm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
