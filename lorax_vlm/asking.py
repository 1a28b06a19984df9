"""How a base or an adapter is asked: which prompt, and how its text is decoded. No torch.

An adapter is asked as it was trained, where its record says how. What is asked of the other kind (a question to a
captioner) is asked in the base's words and decoded in its way.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.data.readers.values import is_blank
from lorax_vlm.errors import AdapterNameError, PromptError, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.types import GenerationSettings

QUESTION_MARK = "{question}"
# Longest captions by style on real checkpoints, whose own preset is for one short sentence of at least eight tokens.
_STYLE_TOKENS = {"detailed": 120, "concise": 20, "creative": 60}


def require_rows(rows: object, what: str, alone: str) -> list[Any]:
    """What was given for several rows, as a list.

    Args:
        rows: As given.
        what: Such as ``images``.
        alone: What is called for one.

    Raises:
        UsageError: It is one, or none.
    """
    one = isinstance(rows, str | bytes | Mapping) or getattr(rows, "ndim", 1) in (0, 2, 3)  # an array of pixels
    if one or not isinstance(rows, Iterable):
        raise UsageError(f"A list of {what} is needed, got {quoted(rows)}; for one use {alone}.")
    return list(rows)


def distinct_adapters(adapters: Sequence[object]) -> list[str | None]:
    """The different ones of the adapters that rows name, None for the base.

    Raises:
        AdapterNameError: One is no text.
    """
    for adapter in adapters:
        if not isinstance(adapter, str | None):
            raise AdapterNameError(quoted(adapter))
    return list(dict.fromkeys(adapter for adapter in adapters if isinstance(adapter, str | None)))


def answers_questions(manifest: Manifest) -> bool:
    """Whether an adapter was trained to answer a question or an instruction, not to caption."""
    return QUESTION_MARK in manifest.prompt


def require_captions(entry: CatalogEntry) -> None:
    """Raise ``UsageError`` for a base that cannot write captions."""
    if not entry.captions:
        raise UsageError(f"{entry.name} only chooses among fixed answers; it cannot write captions.")


def require_question(question: object) -> str:
    """A question without white space around it.

    Raises:
        PromptError: There is nothing to see of it, or it is no text.
    """
    if not isinstance(question, str) or is_blank(question):
        raise PromptError(f"the question {quoted(question)}", "it is empty or not text.")
    return question.strip()


def question_prompt(entry: CatalogEntry, manifest: Manifest | None, question: str) -> str:
    """The prompt of a question to a base, or to an adapter on it."""
    template = manifest.prompt if manifest is not None and answers_questions(manifest) else entry.question_template
    return template.replace(QUESTION_MARK, question)


def caption_prompt(entry: CatalogEntry, manifest: Manifest | None) -> str:
    """The prompt of a caption by a base, or by an adapter on it.

    Raises:
        PromptError: The adapter answers questions: it would be asked one without words.
    """
    if manifest is None or manifest.base is None:  # nothing says how it was trained
        return entry.caption_prompt
    if answers_questions(manifest):
        hint = "ask it one, lorax-vlm ask IMAGE QUESTION --adapter NAME, or choose an adapter that captions."
        raise PromptError(f"adapter {manifest.name!r} for a caption", f"it answers questions; {hint}")
    return manifest.prompt


def question_settings(entry: CatalogEntry, manifest: Manifest | None) -> GenerationSettings:
    """How an answer is decoded when the caller does not say."""
    own = manifest.generation if manifest is not None and answers_questions(manifest) else None
    return own or entry.answer_settings


def style_settings(entry: CatalogEntry, style: str) -> GenerationSettings:
    """How the captions of a new adapter for a style are to be decoded."""
    settings = entry.caption_settings
    if entry.miniature:
        return settings
    limit = _STYLE_TOKENS.get(style, settings.max_new_tokens)
    return settings.replace(max_new_tokens=limit, min_new_tokens=0)


def caption_settings(entry: CatalogEntry, manifest: Manifest | None) -> GenerationSettings:
    """How a caption is decoded when the caller does not say."""
    own = manifest.generation if manifest is not None and not answers_questions(manifest) else None
    return own or entry.caption_settings
