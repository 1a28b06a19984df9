"""How a base or an adapter is asked: which prompt, and how its text is decoded. No torch.

An adapter is asked as it was trained, where its record says how. What is asked of the other kind (a question to a
captioner) is asked in the base's words and decoded in its way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.data.examples import Kind
from lorax_vlm.data.readers.values import is_blank
from lorax_vlm.errors import AdapterNameError, PromptError, UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.requests import Request
from lorax_vlm.skills import Skill
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


def captions_only(manifest: Manifest) -> bool:
    """Whether an adapter is known to have been trained to caption; one that says nothing may be for anything."""
    return manifest.skill is not None and not answers_questions(manifest)


def trained_template(entry: CatalogEntry, kind: Kind) -> str:
    """The prompt that examples of a kind are trained with on a base: the base's own, as in use."""
    return entry.question_template if kind == "questions" else entry.caption_prompt


def require_captions(entry: CatalogEntry) -> None:
    """Raise ``UsageError`` for a base that cannot write captions."""
    if not entry.captions:
        raise UsageError(f"{entry.name} only chooses among fixed answers; it cannot write captions.")


def require_decoding(entry: CatalogEntry, usual: GenerationSettings, wanted: GenerationSettings) -> None:
    """Raise ``UsageError`` where a base that writes nothing is to write in another way than usual."""
    changed = [name for name, value in vars(wanted).items() if value != getattr(usual, name)]
    if changed and not entry.captions:
        raise UsageError(f"{entry.name} only chooses among fixed answers; {', '.join(changed)} would change nothing.")


def require_skill(entry: CatalogEntry, skill: Skill) -> None:
    """Raise ``UsageError`` for a base that cannot learn a skill, because it takes words of its own, or what is none."""
    if not hasattr(skill, "asked"):
        known = 'caption("concise"), answer("counting") or instruct()'
        raise UsageError(f"What an adapter is for is a skill of lorax_vlm, {known}; got {quoted(skill)}.")
    if not skill.asked:
        require_captions(entry)
    if skill.writes and not entry.captions:
        raise UsageError(f"{entry.name} only chooses among fixed answers; it cannot learn {skill}.")


def require_question(question: object) -> str:
    """A question without white space around it.

    Raises:
        PromptError: There is nothing to see of it, or it is no text.
    """
    if not isinstance(question, str) or is_blank(question):
        raise PromptError(f"the question {quoted(question)}", "it is empty or not text.")
    return question.strip()


def question_requests(
    images: object, questions: object, adapter: object, decoding: Mapping[str, Any], *, sound: bool
) -> list[Request]:
    """A request for each row of lists side by side.

    Args:
        images: A list.
        questions: One per image.
        adapter: One per image, or that of all rows.
        decoding: Of all rows.
        sound: All questions must be sound. Else an unsound one fails when it is asked, and the others do not.

    Raises:
        UsageError: One is no list, they are not equally many, or a setting is unknown.
        PromptError: A question is unsound.
    """
    GenerationSettings.require_fields(decoding)
    images = require_rows(images, "images", "answer_question")
    questions = require_rows(questions, "questions", "answer_question")
    if len(images) != len(questions):
        raise UsageError(f"One image per question is needed, got {len(images)} and {len(questions)}.")
    one = isinstance(adapter, str | None)
    adapters = [adapter] * len(images) if one else require_rows(adapter, "adapters", "a name")
    if len(adapters) != len(images):
        raise UsageError(f"One adapter per question is needed, got {len(adapters)} for {len(images)}.")
    if sound:
        questions = [require_question(question) for question in questions]
    return [  # what is no text is no question either
        Request.about(image, question if isinstance(question, str) else "", own, **decoding)
        for image, question, own in zip(images, questions, adapters, strict=True)
    ]


@dataclass(frozen=True)
class Ask:
    """How a base or an adapter is asked for one thing."""

    template: str
    """Of the prompt; ``{question}`` in it stands for the question or instruction."""
    settings: GenerationSettings
    """How its text is decoded when the caller does not say."""

    def prompt(self, question: str = "") -> str:
        """The prompt of one question, or of a caption."""
        return self.template.replace(QUESTION_MARK, question)


def ask_of(entry: CatalogEntry, manifest: Manifest | None, *, question: bool) -> Ask:
    """How an adapter is asked on its own base: as it was trained, where it says so and is asked for what it does.

    Args:
        entry: The base.
        manifest: Of the adapter. None: the base alone is asked.
        question: Whether it is asked a question; else it is asked for a caption.
    """
    usual = _ask_of_base(entry, question)
    if manifest is None or manifest.base is None or answers_questions(manifest) != question:
        return usual
    return Ask(manifest.prompt, manifest.generation or usual.settings)


def ask_on(target: CatalogEntry, source: CatalogEntry, manifest: Manifest) -> Ask:
    """How an adapter is asked that is moved to another base: as at its own within one family, else as is usual there.

    Args:
        target: Where it goes.
        source: Where it is from.
        manifest: Of the adapter.
    """
    question = answers_questions(manifest)
    if manifest.base is not None and manifest.base.family == target.family:
        return ask_of(source, manifest, question=question)
    return _ask_of_base(target, question)


def ask_for(entry: CatalogEntry, skill: Skill) -> Ask:
    """How a new adapter for a skill is trained and asked."""
    if not skill.asked:
        return Ask(entry.caption_prompt, _style_settings(entry, skill.name))
    return Ask(entry.question_template, entry.caption_settings if skill.writes else entry.answer_settings)


def caption_ask(entry: CatalogEntry, manifest: Manifest | None) -> Ask:
    """How an adapter is asked for a caption.

    Raises:
        PromptError: It answers questions, and would be asked one without words.
    """
    if manifest is not None and manifest.base is not None and answers_questions(manifest):
        hint = "ask it one, lorax-vlm ask IMAGE QUESTION --adapter NAME, or choose an adapter that captions."
        raise PromptError(f"adapter {manifest.name!r} for a caption", f"it answers questions; {hint}")
    return ask_of(entry, manifest, question=False)


def _ask_of_base(entry: CatalogEntry, question: bool) -> Ask:
    if question or not entry.captions:
        return Ask(entry.question_template if question else entry.caption_prompt, entry.answer_settings)
    return Ask(entry.caption_prompt, entry.caption_settings)


def _style_settings(entry: CatalogEntry, style: str) -> GenerationSettings:
    settings = entry.caption_settings
    if entry.miniature:
        return settings
    limit = _STYLE_TOKENS.get(style, settings.max_new_tokens)
    return settings.replace(max_new_tokens=limit, min_new_tokens=0)
