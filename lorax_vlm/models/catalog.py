"""The checkpoints LoRAX knows by name: one row each. No torch.

Any other checkpoint of a supported family works by hub id or folder; it takes the defaults of its family. Figures of
hub checkpoints: parameters computed from the published configurations, prompts and decoding from the papers' code.
"""

from dataclasses import dataclass
from pathlib import Path

from lorax_vlm.errors import UnknownModel
from lorax_vlm.types import GenerationSettings

MINIS_DIR = Path(__file__).parent / "minis"

_GREEDY = GenerationSettings(max_new_tokens=96)
_PAPER_CAPTION = GenerationSettings(
    max_new_tokens=30, min_new_tokens=8, num_beams=5, length_penalty=0.0, repetition_penalty=1.15
)
_PAPER_ANSWER = GenerationSettings(max_new_tokens=10, min_new_tokens=1, num_beams=5, length_penalty=-1.0)


@dataclass(frozen=True)
class CatalogEntry:
    """One checkpoint: where it is, what it costs, how it is prompted."""

    name: str
    source: str
    """A hub id or a folder."""
    family: str
    key: str = ""
    """Short name used by the three systems, such as ``blip2_opt``."""
    parameters: int | None = None
    download_bytes: int | None = None
    miniature: bool = False
    caption_prompt: str = ""
    question_template: str = "Question: {question} Answer:"
    caption_settings: GenerationSettings = _PAPER_CAPTION
    answer_settings: GenerationSettings = _PAPER_ANSWER
    licence: str = "see the hub"

    @property
    def identity(self) -> str:
        """How adapters refer to this base on every machine: its name, or its hub id; never a path."""
        return self.name if Path(self.source).is_absolute() else self.source

    def question_prompt(self, question: str) -> str:
        """The prompt for a question."""
        return self.question_template.replace("{question}", question)


CATALOG = (
    CatalogEntry(
        name="blip2-opt-mini",
        source=str(MINIS_DIR / "blip2-opt-mini"),
        family="blip2-opt",
        parameters=2_527_200,
        miniature=True,
        caption_settings=_GREEDY,
        answer_settings=GenerationSettings(max_new_tokens=10),
        licence="MIT",
    ),
    CatalogEntry(
        name="blip2-opt-2.7b",
        source="Salesforce/blip2-opt-2.7b",
        family="blip2-opt",
        key="blip2_opt",
        parameters=3_744_761_856,
        download_bytes=14_980_000_000,
    ),
    CatalogEntry(
        name="blip2-opt-2.7b-coco",
        source="Salesforce/blip2-opt-2.7b-coco",
        family="blip2-opt",
        parameters=3_745_353_216,
        download_bytes=14_980_000_000,
        caption_prompt="a photo of",
    ),
)


def list_models() -> tuple[CatalogEntry, ...]:
    """Every checkpoint known by name."""
    return CATALOG


def get_model_entry(name: str) -> CatalogEntry:
    """The row for a name, a key, a hub id or a folder; unlisted checkpoints get their family's defaults.

    Raises:
        UnknownModel: It is none of these.
    """
    for entry in CATALOG:
        if name and name in (entry.name, entry.key, entry.source):
            return entry
    if name and Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        return CatalogEntry(name=folder.name, source=str(folder), family="")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/"):
        return CatalogEntry(name=name.split("/")[1], source=name, family="")
    raise UnknownModel(name, [entry.name for entry in CATALOG])
