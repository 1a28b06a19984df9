"""Forbidden words are not written, whatever tokens they would be made of; all else is as it was."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import UsageError
from lorax_vlm.models.families.decoding import Forbidden, logits_processors
from lorax_vlm.models.families.text import show_token
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.requests import Request
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.types import GenerationSettings

WORDS = ("red", "a Circle", "squ")


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini"])
def test_exactly_the_tokens_that_would_complete_a_word_are_refused(
    name: str, load_shared: Callable[[str], LoadedModel]
) -> None:
    tokenizer = load_shared(name).family.tokenizer  # type: ignore[attr-defined]
    special, pieces = set(tokenizer.all_special_ids), [show_token(tokenizer, t) for t in range(len(tokenizer))]
    draw = random.Random(3)
    some = [t for t in range(len(tokenizer)) if t not in special]
    rows = [[draw.choice(some) for _ in range(8)] for _ in range(40)]
    for text in (
        "a re",
        "a cat\n",
        "a re\n",
        "r",
        "a circl",
        "Squ",
        "infrared",
        "a red",
        "blue a",
        "a  circ",
        "it is re",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append(([some[0]] * 8 + ids)[-8:])
    forbidden = Forbidden(tokenizer, WORDS)(torch.tensor(rows), torch.zeros(len(rows), len(tokenizer)))
    refused = 0
    for row, scores in zip(rows, forbidden, strict=True):
        said = "".join(pieces[token] for token in row)
        for token, score in enumerate(scores.tolist()):
            longer = said + ("" if token in special else pieces[token])
            ends = [m.end() for w in WORDS for m in re.finditer(rf"(?<!\w){re.escape(w)}", longer, re.IGNORECASE)]
            assert (score == -torch.inf) == any(end > len(said) for end in ends), (said, pieces[token])
            refused += score == -torch.inf
    assert refused > 50


@pytest.mark.parametrize("name", ["blip2-opt-mini", "blip2-flan-mini", "instructblip-mini"])
@pytest.mark.parametrize(
    "decoding", [{}, {"num_beams": 3}, {"temperature": 2.0, "seed": 1}, {"repetition_penalty": 1.3}]
)
def test_no_caption_has_a_forbidden_word(
    name: str,
    decoding: dict[str, float],
    load_shared: Callable[[str], LoadedModel],
    scenes: list[Scene],
    store: AdapterStore,
) -> None:
    engine = BaseEngine(load_shared(name), store)

    def say(*words: str) -> list[str]:
        requests = [Request.about(scene.image, forbid=words, max_new_tokens=12, **decoding) for scene in scenes]
        return [result.text for result in engine.generate(requests)]

    usual = say()
    assert any("red" in text for text in usual), "it is said where it is allowed"
    without = say("Red", "squ")
    assert not any(re.search(r"\b(red|squ)", text, re.IGNORECASE) for text in without)
    free = [number for number, text in enumerate(usual) if not re.search(r"\b(red|squ)", text)]
    if "num_beams" not in decoding:
        assert [without[number] for number in free] == [usual[number] for number in free]
    assert say("zebra") == usual


def test_words_are_a_list() -> None:
    for wrong in ("red", [""], [3]):
        with pytest.raises(UsageError, match="forbid must be a list of words"):
            GenerationSettings(forbid=wrong)  # type: ignore[arg-type]
    assert GenerationSettings(forbid=["red"]).forbid == ("red",)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Instead of bad_words_ids: forbid=\[...\]"):
        GenerationSettings.require_fields(["bad_words_ids"])


def test_a_vocabulary_is_searched_once_for_a_word(mini: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GenerationSettings(forbid=("purple", "orange"))
    first = logits_processors(settings, 2, mini.family.tokenizer)
    monkeypatch.setattr("lorax_vlm.models.families.decoding._where", lambda *_: pytest.fail("searched again"))
    again = logits_processors(settings, 3, mini.family.tokenizer)
    logits, ids = torch.zeros(2, len(mini.family.tokenizer)), torch.zeros(2, 0, dtype=torch.long)
    assert torch.equal(first[0](ids, logits), again[0](ids, logits))
    assert first[0](ids, logits).isinf().any()


@pytest.mark.parametrize(
    "wish", [{"forbid": ["1", "2"]}, {"num_beams": 3}, {"temperature": 0.5}, {"max_new_tokens": 3}]
)
def test_what_only_chooses_takes_no_wishes_about_writing(
    load_shared: Callable[[str], LoadedModel], store: AdapterStore, scenes: list[Scene], wish: dict[str, Any]
) -> None:
    engine = BaseEngine(load_shared("vilt-mini"), store)
    [said] = engine.generate([Request.about(scenes[0].image, "how many shapes are there?", **wish)])
    assert isinstance(said.error, UsageError)
    assert f"{next(iter(wish))} would change nothing" in str(said.error)
