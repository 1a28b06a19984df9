"""How everything is asked, worked out by hand: what is asked for, by whom, on which family, stored or not."""

import dataclasses
from itertools import product

import pytest

from lorax_vlm.adapters.manifest import BaseIdentity, Manifest
from lorax_vlm.asking import Ask, ask_for, ask_of, ask_on, caption_ask
from lorax_vlm.errors import PromptError
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry, list_models
from lorax_vlm.skills import Skill, answer, caption, instruct
from lorax_vlm.types import GenerationSettings

OWN = GenerationSettings(max_new_tokens=77, num_beams=2)
MINIS = ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")
QUESTION, CAPTION = (
    {
        "blip2-opt-mini": "Question: {question} Answer:",
        "blip2-flan-mini": "Question: {question} Short answer:",
        "instructblip-mini": "Question: {question} Short Answer:",
        "vilt-mini": "{question}",
    },
    {"blip2-opt-mini": "", "blip2-flan-mini": "", "instructblip-mini": "A short image caption."},
)


def made(entry: CatalogEntry, skill: Skill, **changes: object) -> Manifest:
    """An adapter of a base that says in its own words how it is asked."""
    base = BaseIdentity(entry.identity, entry.family, {}, {})
    prompt = "Please: {question}" if skill.asked else "in short:"
    manifest = Manifest("one", skill, base, trained=True, prompt=prompt, generation=OWN)
    return dataclasses.replace(manifest, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MINIS)
def test_a_base_is_asked_in_the_words_of_its_family(name: str) -> None:
    entry = get_model_entry(name)
    assert ask_of(entry, None, question=True) == Ask(QUESTION[name], entry.answer_settings)
    if entry.captions:
        assert ask_of(entry, None, question=False) == Ask(CAPTION[name], entry.caption_settings)
    assert ask_of(entry, None, question=True).prompt("why?") == QUESTION[name].replace("{question}", "why?")


@pytest.mark.parametrize(
    ("name", "skill", "question"),
    [*product(MINIS, (caption("concise"), answer("counting"), instruct()), (True, False))],
)
def test_an_adapter_is_asked_as_it_was_trained_for_what_it_does(name: str, skill: Skill, question: bool) -> None:
    """And as its base is for what it does not; without words of its own for decoding as its base is."""
    entry = get_model_entry(name)
    usual, own = ask_of(entry, None, question=question), "Please: {question}" if skill.asked else "in short:"
    manifest = made(entry, skill)
    if skill.asked != question:
        assert ask_of(entry, manifest, question=question) == usual
        return
    assert ask_of(entry, manifest, question=question) == Ask(own, OWN)
    silent = dataclasses.replace(manifest, generation=None)
    assert ask_of(entry, silent, question=question) == Ask(own, usual.settings)
    foreign = dataclasses.replace(manifest, base=None)
    assert ask_of(entry, foreign, question=question) == usual, "nothing says how it was trained"


@pytest.mark.parametrize(("source", "target"), [*product(MINIS[:3], MINIS)])
def test_what_is_moved_keeps_its_words_within_a_family_only(source: str, target: str) -> None:
    there, here = get_model_entry(source), get_model_entry(target)
    for skill in (caption("concise"), answer("counting")):
        moved = ask_on(here, there, made(there, skill))
        if source == target:
            assert moved == ask_of(there, made(there, skill), question=skill.asked)
        else:
            assert moved == ask_of(here, None, question=skill.asked)


@pytest.mark.parametrize("name", MINIS)
def test_new_adapters_are_asked_as_their_base_is_with_room_for_what_they_write(name: str) -> None:
    entry = get_model_entry(name)
    assert ask_for(entry, answer("counting")) == Ask(QUESTION[name], entry.answer_settings)
    assert ask_for(entry, instruct()) == Ask(QUESTION[name], entry.caption_settings)
    if entry.captions:
        assert ask_for(entry, caption("detailed")) == Ask(CAPTION[name], entry.caption_settings)


def test_styles_of_full_size_checkpoints_have_room_of_their_own() -> None:
    entry = next(row for row in list_models() if row.captions and not row.miniature)
    tokens = {
        style: ask_for(entry, caption(style)).settings.max_new_tokens for style in ("detailed", "concise", "mine")
    }
    assert tokens == {"detailed": 120, "concise": 20, "mine": entry.caption_settings.max_new_tokens}


def test_who_answers_questions_is_not_asked_for_a_caption() -> None:
    entry = get_model_entry("blip2-opt-mini")
    with pytest.raises(PromptError, match="it answers questions; ask it one"):
        caption_ask(entry, made(entry, answer("counting")))
    assert caption_ask(entry, made(entry, caption("concise"))) == Ask("in short:", OWN)
    assert caption_ask(entry, None) == Ask("", entry.caption_settings)
