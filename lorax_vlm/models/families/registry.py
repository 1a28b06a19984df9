"""Which family a checkpoint belongs to, and how that family's parts are put together. A new family is one row here."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
)

from lorax_vlm.errors import CheckpointError
from lorax_vlm.models.families.base import Family
from lorax_vlm.models.families.blip2 import Blip2DecoderFamily
from lorax_vlm.models.families.blip2_t5 import Blip2EncoderDecoderFamily, keep_head_untied
from lorax_vlm.models.families.instructblip import InstructBlipFamily
from lorax_vlm.models.families.vilt import ViltFamily
from lorax_vlm.models.families.vilt_patches import choose_patches_in_order

# Only the language model's linear layers are quantised. Passing any list drops the library's own one, so it is whole.
_IMAGE_PATH = ("vision_model", "qformer", "query_tokens", "language_projection")


@dataclass(frozen=True)
class FamilyRow:
    """One architecture."""

    name: str
    model_type: str
    text_type: str | None
    """``model_type`` of the language model's configuration, None for an architecture without one."""
    model_class: Any
    load_processor: Callable[[Path], Any]
    make_family: Callable[[Any, Any, str], Family]
    unquantized: tuple[str, ...]
    after_loading: Callable[[Any, str], None] = lambda model, checkpoint: None
    """What transformers leaves wrong in a loaded model."""


def _load_blip2_processor(folder: Path) -> Any:
    processor = Blip2Processor.from_pretrained(folder, trust_remote_code=False)
    # With torchvision installed another implementation would be chosen, whose resizing differs slightly.
    processor.image_processor = BlipImageProcessorPil.from_pretrained(folder, trust_remote_code=False)
    return processor


def _load_instructblip_processor(folder: Path) -> Any:
    """Put together by hand: the hub's files name InstructBlipVideoProcessor, which makes four images of one."""
    file = folder / "processor_config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return InstructBlipProcessor(
        BlipImageProcessorPil.from_pretrained(folder, trust_remote_code=False),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
        AutoTokenizer.from_pretrained(folder / "qformer_tokenizer", trust_remote_code=False),
        num_query_tokens=stored.get("num_query_tokens"),
    )


def _load_vilt_processor(folder: Path) -> Any:
    return ViltProcessor(
        ViltImageProcessorPil.from_pretrained(folder, trust_remote_code=False),
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
    )


FAMILIES = (
    FamilyRow(
        name="blip2-opt",
        model_type="blip-2",
        text_type="opt",
        model_class=Blip2ForConditionalGeneration,
        load_processor=_load_blip2_processor,
        make_family=Blip2DecoderFamily,
        unquantized=(*_IMAGE_PATH, "lm_head"),
    ),
    FamilyRow(
        name="blip2-t5",
        model_type="blip-2",
        text_type="t5",
        model_class=Blip2ForConditionalGeneration,
        load_processor=_load_blip2_processor,
        make_family=Blip2EncoderDecoderFamily,
        unquantized=(*_IMAGE_PATH, "lm_head", "wo"),
        after_loading=keep_head_untied,
    ),
    FamilyRow(
        name="instructblip",
        model_type="instructblip",
        text_type="llama",
        model_class=InstructBlipForConditionalGeneration,
        load_processor=_load_instructblip_processor,
        make_family=InstructBlipFamily,
        unquantized=(*_IMAGE_PATH, "lm_head"),
    ),
    FamilyRow(
        name="vilt",
        model_type="vilt",
        text_type=None,
        model_class=ViltForQuestionAnswering,
        load_processor=_load_vilt_processor,
        make_family=ViltFamily,
        unquantized=("vilt.pooler", "classifier"),
        after_loading=lambda model, checkpoint: choose_patches_in_order(model),
    ),
)


def find_family(config: Any, checkpoint: str) -> FamilyRow:
    """The row of a configuration.

    Raises:
        CheckpointError: It is of no supported architecture.
    """
    text_type = getattr(getattr(config, "text_config", None), "model_type", None)
    for row in FAMILIES:
        if (row.model_type, row.text_type) == (config.model_type, text_type):
            return row
    supported = ", ".join(f"{row.model_type}{f' with {row.text_type}' if row.text_type else ''}" for row in FAMILIES)
    with_text = f" with text model {text_type}" if text_type else ""
    raise CheckpointError(checkpoint, [f"its architecture is {config.model_type}{with_text}; supported: {supported}"])
