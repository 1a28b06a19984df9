"""The checkpoints LoRAX knows by name: one row each. No torch.

Any other checkpoint of a supported family works by hub id or folder; it takes the defaults of its family. Figures of
hub checkpoints: parameters computed from the published configurations, prompts and decoding from the papers' code.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorax_vlm.errors import UnknownModel, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.description import read_family_name
from lorax_vlm.models.places import find_folder
from lorax_vlm.models.spec import ARCHITECTURES, GREEDY, PAPER_ANSWER, PAPER_CAPTION, SHORT_ANSWER
from lorax_vlm.types import GenerationSettings

MINIS_DIR = Path(__file__).parent / "minis"


@dataclass(frozen=True)
class CatalogEntry:
    """One checkpoint: where it is, what it costs, how it is prompted."""

    name: str
    source: str
    """A hub id or a folder."""
    family: str
    key: str = ""
    """Short name used by the three systems, such as ``blip2_opt``."""
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict, hash=False)
    """Width and layers by component; empty for a checkpoint that is not listed."""
    parameters: int | None = None
    image_tokens: int | None = None
    """That an image takes in its language model unless more are asked for; None where it has no language model."""
    download_bytes: int | None = None
    miniature: bool = False
    captions: bool = True
    """Whether it can write text of its own; ViLT only chooses an answer."""
    caption_prompt: str = ""
    question_template: str = "Question: {question} Answer:"
    caption_settings: GenerationSettings = PAPER_CAPTION
    answer_settings: GenerationSettings = PAPER_ANSWER
    licence: str = "see the hub"

    @property
    def identity(self) -> str:
        """How adapters refer to this base on every machine: its name, or its hub id; never a path."""
        return self.name if Path(self.source).is_absolute() else self.source

    def question_prompt(self, question: str) -> str:
        """The prompt for a question."""
        return self.question_template.replace("{question}", question)


_MINI_BLIP: dict[str, Any] = {"sizes": {"vision": (160, 3), "qformer": (160, 2), "lm": (160, 3)}, "image_tokens": 16}
_IMAGE_PATH = {"vision": (1408, 39), "qformer": (768, 12)}
_SMOL_256M = {"vision": (768, 12), "lm": (576, 30)}
_SMOL_500M = {"vision": (768, 12), "lm": (960, 32)}
_SMOL_2B = {"vision": (1152, 27), "lm": (2048, 24)}
_FROM_ARCHITECTURE = ("question_template", "caption_prompt", "caption_settings", "answer_settings")


def with_family_defaults(entry: CatalogEntry, family: str) -> CatalogEntry:
    """A checkpoint with the prompts and the decoding of its family."""
    row = ARCHITECTURES[family]
    usual = {name: getattr(row, name) for name in _FROM_ARCHITECTURE}
    return replace(entry, family=family, captions=not row.chooses, **usual)


def _listed(name: str, source: str, family: str, **own: Any) -> CatalogEntry:
    """A row of the catalogue: its family's defaults, and what is its own."""
    return replace(with_family_defaults(CatalogEntry(name, source, family), family), **own)


def _miniature(name: str, family: str, **own: Any) -> CatalogEntry:
    decoding = {"caption_settings": GREEDY, "answer_settings": SHORT_ANSWER}
    return _listed(name, str(MINIS_DIR / name), family, miniature=True, licence="MIT", **decoding, **own)


CATALOG = (
    _miniature("blip2-opt-mini", "blip2-opt", **_MINI_BLIP, parameters=2_527_200),
    _miniature("blip2-flan-mini", "blip2-t5", **_MINI_BLIP, parameters=3_054_080),
    _miniature("instructblip-mini", "instructblip", **_MINI_BLIP, parameters=2_812_000),
    _miniature("vilt-mini", "vilt", sizes={"encoder": (160, 5)}, parameters=1_464_509),
    _listed(
        "blip2-opt-2.7b",
        "Salesforce/blip2-opt-2.7b",
        "blip2-opt",
        key="blip2_opt",
        sizes={**_IMAGE_PATH, "lm": (2560, 32)},
        image_tokens=32,
        parameters=3_744_761_856,
        download_bytes=14_980_000_000,
    ),
    _listed(
        "blip2-opt-2.7b-coco",
        "Salesforce/blip2-opt-2.7b-coco",
        "blip2-opt",
        sizes={**_IMAGE_PATH, "lm": (2560, 32)},
        image_tokens=32,
        parameters=3_745_353_216,
        download_bytes=14_980_000_000,
        caption_prompt="a photo of",
    ),
    _listed(
        "blip2-flan-t5-xl",
        "Salesforce/blip2-flan-t5-xl",
        "blip2-t5",
        key="blip2_flan",
        sizes={**_IMAGE_PATH, "lm": (2048, 24)},
        image_tokens=32,
        parameters=3_942_446_592,
        download_bytes=15_770_000_000,
    ),
    _listed(
        "instructblip-vicuna-7b",
        "Salesforce/instructblip-vicuna-7b",
        "instructblip",
        key="instructblip",
        sizes={**_IMAGE_PATH, "lm": (4096, 32)},
        image_tokens=32,
        parameters=7_913_726_720,
        download_bytes=31_650_000_000,
        licence="research only (LLaMA, Vicuna, LLaVA data)",
    ),
    _listed(
        "vilt-b32-finetuned-vqa",
        "dandelin/vilt-b32-finetuned-vqa",
        "vilt",
        key="vilt",
        sizes={"encoder": (768, 12)},
        parameters=117_588_537,
        download_bytes=470_000_000,
    ),
    *(
        _listed(
            name,
            f"HuggingFaceTB/{source}",
            family,
            sizes=sizes,
            parameters=parameters,
            image_tokens=tokens,
            licence="Apache-2.0",
        )
        for name, source, family, sizes, parameters, tokens in (
            ("smolvlm-256m", "SmolVLM-256M-Instruct", "idefics3", _SMOL_256M, 256_484_928, 64),
            ("smolvlm-500m", "SmolVLM-500M-Instruct", "idefics3", _SMOL_500M, 507_482_304, 64),
            ("smolvlm-2.2b", "SmolVLM-Instruct", "idefics3", _SMOL_2B, 2_246_784_880, 81),
            ("smolvlm2-256m", "SmolVLM2-256M-Video-Instruct", "smolvlm", _SMOL_256M, 256_484_928, 64),
            ("smolvlm2-500m", "SmolVLM2-500M-Video-Instruct", "smolvlm", _SMOL_500M, 507_482_304, 64),
            ("smolvlm2-2.2b", "SmolVLM2-2.2B-Instruct", "smolvlm", _SMOL_2B, 2_246_784_880, 81),
        )
    ),
)

MINIATURE_KEYS = {
    "blip2_opt": "blip2-opt-mini",
    "blip2_flan": "blip2-flan-mini",
    "instructblip": "instructblip-mini",
    "vilt": "vilt-mini",
}
"""The miniature in the place of each hub checkpoint, by key."""


def list_models() -> tuple[CatalogEntry, ...]:
    """Every checkpoint known by name."""
    return CATALOG


def get_model_entry(name: str | Path) -> CatalogEntry:
    """The row for a name, a key, a hub id or a folder; unlisted checkpoints get their family's defaults.

    Of one that is not on this machine only loading tells the family; it is empty until then.

    Raises:
        UnknownModel: It is none of these.
    """
    if isinstance(name, Path):
        name = str(name)
    if not isinstance(name, str):
        raise UnknownModel(quoted(name), [entry.name for entry in CATALOG])
    for entry in CATALOG:
        if name and name in (entry.name, entry.key, entry.source):
            return entry
    if name and os.path.isdir(os.path.expanduser(name)):  # which say no where the system refuses a name
        folder = Path(name).expanduser().resolve()
        return _unlisted(CatalogEntry(name=folder.name, source=str(folder), family=""))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return _unlisted(CatalogEntry(name=name.split("/")[1], source=name, family=""))
    raise UnknownModel(name, [entry.name for entry in CATALOG])


def _unlisted(entry: CatalogEntry) -> CatalogEntry:
    """With the defaults of its family, where its configuration is on this machine."""
    folder = find_folder(entry.source)
    family = read_family_name(folder) if folder is not None else None
    return with_family_defaults(entry, family) if family is not None else entry


def checkpoints_by_key(models: str | Mapping[str, str]) -> dict[str, str]:
    """What each model key stands for: ``hub``, ``mini``, or other checkpoints for some keys and the hub's for the rest.

    Raises:
        UsageError: It is another word, or has an unknown key.
    """
    if models == "hub":
        return {key: key for key in MINIATURE_KEYS}
    if models == "mini":
        return dict(MINIATURE_KEYS)
    if not isinstance(models, Mapping):
        raise UsageError(f"models must be 'hub', 'mini' or checkpoints by key, got {quoted(models)}.")
    if unknown := set(models) - set(MINIATURE_KEYS):
        raise UsageError(f"Unknown model keys {', '.join(sorted(unknown))}. Known: {', '.join(MINIATURE_KEYS)}.")
    return {key: models.get(key, key) for key in MINIATURE_KEYS}
