"""What an adapter is for. No torch.

``caption("concise")`` writes captions in a style, ``answer("counting")`` answers questions of a kind, ``instruct()``
follows instructions. A manifest keeps the skill; which data teach and judge it is said in one place,
``data/world/skills.py``, and how it is asked in another, ``asking.py``.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lorax_vlm.types import require_text

Mode = Literal["caption", "answer", "instruct"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Skill:
    """A mode and a name in it; see ``caption``, ``answer`` and ``instruct``."""

    mode: Mode
    name: str
    """The caption style or the kind of question; any word, empty where nothing was said."""

    @property
    def asked(self) -> bool:
        """Whether it takes a question or an instruction."""
        return self.mode != "caption"

    @property
    def writes(self) -> bool:
        """Whether it takes words of its own, which a model that chooses among fixed answers has not."""
        return self.mode != "answer"

    def __str__(self) -> str:
        """In words, for people.

        >>> str(caption("concise")), str(answer("counting")), str(caption(""))
        ('captions, concise', 'answers, counting', 'captions')
        """
        what = {"caption": "captions", "answer": "answers", "instruct": "instructions"}[self.mode]
        return f"{what}, {self.name}" if self.name and self.mode != "instruct" else what


def caption(style: str) -> Skill:
    """Captions in a style; ``detailed``, ``concise``, ``creative`` and ``plain`` are known, others are yours."""
    require_text("style", style)
    return Skill("caption", style)


def answer(kind: str) -> Skill:
    """Answers to questions of a kind: ``general``, ``counting``, ``reasoning``, ..., or a word of yours."""
    require_text("task", kind)
    return Skill("answer", kind)


def instruct() -> Skill:
    """Doing what an instruction about an image says."""
    return Skill("instruct", "instructions")


EXCHANGE_TASKS: Mapping[str, Skill] = {
    "captioning": caption("detailed"),
    "vqa": answer("vqa"),
    "instruction_following": instruct(),
    "complex_reasoning": answer("reasoning"),
    "general": answer("general"),
}
"""What the words of ``MultiModalLoRAExchange`` mean."""


def is_meant(skill: Skill | None, word: str) -> bool:
    """Whether a word for a task means a skill: a mode, a name, or a task of the exchange, which may mean a whole mode.

    >>> is_meant(answer("counting"), "vqa"), is_meant(answer("counting"), "complex_reasoning")
    (True, False)
    """
    if skill is None:
        return word == "unknown"
    whole = {"captioning": "caption", "vqa": "answer", "instruction_following": "instruct"}.get(word, word)
    return whole in (skill.mode, skill.name) or EXCHANGE_TASKS.get(word) == skill


def skill_of_words(task: str, style: str) -> Skill | None:
    """What manifests up to version 3 said of an adapter in two words; None where that means nothing known.

    >>> skill_of_words("vqa", "counting"), skill_of_words("complex_reasoning", "complex_reasoning")
    (Skill(mode='answer', name='counting'), Skill(mode='answer', name='reasoning'))
    """
    if task == style or task in ("complex_reasoning", "instruction_following"):
        return EXCHANGE_TASKS.get(task)
    modes: Mapping[str, Mode] = {"captioning": "caption", "vqa": "answer", "general": "answer"}
    return Skill(modes[task], style) if task in modes else None
