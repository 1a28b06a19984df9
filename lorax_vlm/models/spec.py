"""The architectures LoRAX knows: one row each, with all that is particular to one outside of its tensors. No torch.

A row names the class that handles the tensors (``models/families/base.py`` says what that must do). Whatever else the
package does with a model, it asks the row or that class, and never for an architecture by name. A package of yours
adds an architecture by ``register``; ``tests/models/test_own_architecture.py`` does so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lorax_vlm.errors import UsageError
from lorax_vlm.types import GenerationSettings

HEAD = "classifier"
"""The head over fixed answers, in every architecture that chooses: the one module that may travel with an adapter."""

GREEDY = GenerationSettings(max_new_tokens=96)
"""What the miniatures caption with."""
SHORT_ANSWER = GenerationSettings(max_new_tokens=10)
PAPER_CAPTION = GenerationSettings(
    max_new_tokens=30, min_new_tokens=8, num_beams=5, length_penalty=0.0, repetition_penalty=1.15
)
PAPER_ANSWER = GenerationSettings(max_new_tokens=10, min_new_tokens=1, num_beams=5, length_penalty=-1.0)
INSTRUCT_CAPTION = GenerationSettings(
    max_new_tokens=256, min_new_tokens=1, num_beams=5, length_penalty=1.0, repetition_penalty=1.5
)


@dataclass(frozen=True)
class Architecture:
    """One row: how a kind of checkpoint is told, taken apart, adapted, placed and prompted."""

    name: str
    """Such as ``blip2-opt``; manifests keep it as the family of their base."""
    model_type: str
    """``model_type`` of the checkpoint's configuration."""
    text_type: str | None
    """``model_type`` of its language model's configuration. None: it has none."""
    implementation: str
    """``module:Class`` of the ``Family`` that handles its tensors; imported when a checkpoint is loaded."""
    components: Mapping[str, str]
    """The component of each module, by the beginning of its dotted name; the longest beginning counts."""
    site_groups: Mapping[str, str]
    """Named groups of linear layers that a recipe may adapt; each pattern matches a module's whole name.

    The usual recipes take ``lm-qv``, ``lm-attention`` and ``lm-mlp``, so there are these; and ``vision``, ``qformer``
    and ``projection`` where there is an image path.
    """
    width_readers: tuple[str, ...]
    """Ends of the names of layers whose input is as wide as their component."""
    quantized_share: float
    """Share of the published checkpoint's parameters in the linear layers that are quantised."""
    float16: bool = True
    """Whether its activations stay in float16's range."""
    chooses: bool = False
    """Whether it picks among fixed answers, by the module ``HEAD`` over them, and writes no text of its own."""
    image_path_stand_in: str | None = None
    """The group of sites that learns what another base's image path did, where there is no image path of its own."""
    question_template: str = "Question: {question} Answer:"
    caption_prompt: str = ""
    caption_settings: GenerationSettings = PAPER_CAPTION
    answer_settings: GenerationSettings = PAPER_ANSWER

    @property
    def types(self) -> tuple[str, str | None]:
        """What of a configuration tells it."""
        return self.model_type, self.text_type

    def __str__(self) -> str:
        """As errors list it: ``blip-2 with opt``."""
        return f"{self.model_type}{f' with {self.text_type}' if self.text_type else ''}"


_BLIP2_COMPONENTS = {
    "vision_model": "vision",
    "qformer": "qformer",
    "query_tokens": "qformer",
    "language_projection": "projection",
    "language_model": "lm",
}
_BLIP2_IMAGE_PATH = {
    "projection": r"language_projection",
    "qformer": r"qformer\.encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|value)",
    "vision": r"vision_model\.encoder\.layers\.\d+\.self_attn\.(qkv|projection)",
}
_IMAGE_PATH_READERS = ("qkv", "query")
_T5_ATTENTION = r"language_model\.(encoder|decoder)\.block\.\d+\.layer\.\d\.(SelfAttention|EncDecAttention)\.(q|k|v|o)"
_CHAT_TEXT = r"model\.(text_model|language_model)\.layers\.\d+\."
_CHAT_SITES = {
    "lm-qv": _CHAT_TEXT + r"self_attn\.(q_proj|v_proj)",
    "lm-attention": _CHAT_TEXT + r"self_attn\.(q_proj|k_proj|v_proj|o_proj)",
    "lm-mlp": _CHAT_TEXT + r"mlp\.(gate_proj|up_proj|down_proj)",
}
_CHAT: dict[str, Any] = {
    "width_readers": ("q_proj", "k_proj", "v_proj", "gate_proj", "qkv", "fc1"),
    "question_template": "{question} Answer with a word or a short phrase.",
    "caption_prompt": "Describe the image.",
    "caption_settings": GenerationSettings(max_new_tokens=96),
    "answer_settings": GenerationSettings(max_new_tokens=16),
}
_TILES: dict[str, Any] = {
    "text_type": "llama",
    "components": {
        "model.vision_model": "vision",
        "model.connector": "projection",
        "model.text_model": "lm",
        "lm_head": "lm",
    },
    "site_groups": {
        **_CHAT_SITES,
        "projection": r"model\.connector\.modality_projection\.proj",
        "vision": r"model\.vision_model\.encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj)",
    },
    "quantized_share": 0.41,
    **_CHAT,
}
_REGISTERED: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            name="blip2-opt",
            model_type="blip-2",
            text_type="opt",
            implementation="lorax_vlm.models.families.blip2:Blip2DecoderFamily",
            components=_BLIP2_COMPONENTS,
            site_groups={
                "lm-qv": r"language_model\.model\.decoder\.layers\.\d+\.self_attn\.(q_proj|v_proj)",
                "lm-attention": (
                    r"language_model\.model\.decoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
                ),
                "lm-mlp": r"language_model\.model\.decoder\.layers\.\d+\.(fc1|fc2)",
                **_BLIP2_IMAGE_PATH,
            },
            width_readers=(*_IMAGE_PATH_READERS, "q_proj", "k_proj", "v_proj", "fc1"),
            quantized_share=0.67,
        ),
        Architecture(
            name="blip2-t5",
            model_type="blip-2",
            text_type="t5",
            implementation="lorax_vlm.models.families.blip2_t5:Blip2EncoderDecoderFamily",
            components=_BLIP2_COMPONENTS,
            site_groups={
                "lm-qv": _T5_ATTENTION.replace("(q|k|v|o)", "(q|v)"),
                "lm-attention": _T5_ATTENTION,
                "lm-mlp": r"language_model\.(encoder|decoder)\.block\.\d+\.layer\.\d\.DenseReluDense\.(wi_0|wi_1|wo)",
                **_BLIP2_IMAGE_PATH,
            },
            width_readers=(*_IMAGE_PATH_READERS, ".q", ".k", ".v", "wi_0"),
            quantized_share=0.56,
            float16=False,  # T5's activations leave its range: the loss becomes NaN
            question_template="Question: {question} Short answer:",
        ),
        Architecture(
            name="instructblip",
            model_type="instructblip",
            text_type="llama",
            implementation="lorax_vlm.models.families.instructblip:InstructBlipFamily",
            components=_BLIP2_COMPONENTS,
            site_groups={
                "lm-qv": r"language_model\.model\.layers\.\d+\.self_attn\.(q_proj|v_proj)",
                "lm-attention": r"language_model\.model\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj)",
                "lm-mlp": r"language_model\.model\.layers\.\d+\.mlp\.(gate_proj|up_proj|down_proj)",
                **_BLIP2_IMAGE_PATH,
            },
            width_readers=(*_IMAGE_PATH_READERS, "q_proj", "k_proj", "v_proj", "gate_proj"),
            quantized_share=0.82,
            question_template="Question: {question} Short Answer:",
            caption_prompt="A short image caption.",
            caption_settings=INSTRUCT_CAPTION,
        ),
        Architecture(
            name="vilt",
            model_type="vilt",
            text_type=None,
            implementation="lorax_vlm.models.families.vilt:ViltFamily",
            components={"vilt": "encoder", HEAD: "head"},  # one encoder for question and image
            # That encoder is what reads and answers, so it goes by the names of a language model.
            site_groups={
                "lm-qv": r"vilt\.encoder\.layer\.\d+\.attention\.attention\.(query|value)",
                "lm-attention": r"vilt\.encoder\.layer\.\d+\.attention\.(attention\.(query|key|value)|output\.dense)",
                "lm-mlp": r"vilt\.(encoder\.layer\.\d+\.(intermediate|output)|pooler)\.dense",
            },
            width_readers=("query",),
            quantized_share=0.72,
            chooses=True,
            image_path_stand_in="lm-attention",
            question_template="{question}",
            answer_settings=SHORT_ANSWER,
        ),
        Architecture(
            name="idefics3",
            model_type="idefics3",
            implementation="lorax_vlm.models.families.tiles:TilesFamily",
            **_TILES,
        ),
        Architecture(
            name="smolvlm",
            model_type="smolvlm",
            implementation="lorax_vlm.models.families.tiles:SmolVlmFamily",
            **_TILES,
        ),
    )
}
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(_REGISTERED)
"""Every row by name."""


def register(row: Architecture) -> None:
    """Add an architecture, for as long as the process lives. The same row again changes nothing.

    Raises:
        UsageError: Another one has its name or its types, or calls one of its modules another component.
    """
    if ARCHITECTURES.get(row.name) == row:
        return
    for other in ARCHITECTURES.values():
        if row.name == other.name or row.types == other.types:
            raise UsageError(f"Architecture {row.name!r} ({row}): there is {other.name!r} ({other}) already.")
        for beginning, component in row.components.items():
            if other.components.get(beginning, component) != component:
                there = other.components[beginning]
                raise UsageError(f"Modules {beginning!r}: {component!r} in {row.name}, {there!r} in {other.name}.")
    _REGISTERED[row.name] = row


def architecture_of(model_type: object, text_type: object) -> Architecture | None:
    """The row of a configuration's types; None for an architecture that is not known."""
    return next((row for row in ARCHITECTURES.values() if row.types == (model_type, text_type)), None)


def chooses(family: str) -> bool:
    """Whether a family picks among fixed answers; one that is not known here is taken to write."""
    row = ARCHITECTURES.get(family)
    return row is not None and row.chooses


def site_groups(family: str) -> Mapping[str, str]:
    """The groups of sites of a family; none of one that is not known here."""
    row = ARCHITECTURES.get(family)
    return row.site_groups if row is not None else {}


def component_beginnings() -> Iterator[tuple[str, str]]:
    """Every beginning of a module's name with its component, over all architectures."""
    for row in ARCHITECTURES.values():
        yield from row.components.items()
