"""How the tokens of a text are chosen: every setting of a call, and what changes logits before one is chosen."""

import re
import secrets
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted
from lorax_vlm.models.families.text import show_token
from lorax_vlm.types import GenerationSettings

_PIECES: "weakref.WeakKeyDictionary[Any, list[str]]" = weakref.WeakKeyDictionary()
_TABLES: "weakref.WeakKeyDictionary[Any, dict[str, _Tokens]]" = weakref.WeakKeyDictionary()
_MOST_TABLES = 256


def make_generation_config(settings: GenerationSettings, room: int, **token_ids: int | list[int]) -> GenerationConfig:
    """Every setting of a call, none left to a library default.

    Args:
        settings: What was asked for.
        room: Positions left for new tokens.
        token_ids: ``bos_token_id``, ``eos_token_id`` (one or several), ``pad_token_id``, ``decoder_start_token_id``,
            ``suppress_tokens``.
    """
    return GenerationConfig(
        max_new_tokens=min(settings.max_new_tokens, room),
        min_new_tokens=settings.min_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty if settings.num_beams > 1 else 1.0,
        repetition_penalty=1.0,
        do_sample=False,
        **token_ids,
    )


def logits_processors(
    settings: GenerationSettings, rows: int, tokenizer: Any, seeds: Sequence[int] | None = None
) -> LogitsProcessorList:
    """What changes logits before a token is chosen: the repetition penalty, forbidden words, then sampling.

    The penalty is a processor of its own: so it falls on new tokens only, as in BLIP-2's code; as a setting the library
    would warn of just that on every call.
    """
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.forbid:
        processors.append(Forbidden(tokenizer, settings.forbid))
    if settings.temperature is not None:
        processors.append(RowSampler(settings, rows, seeds))
    return processors


class RowSampler(LogitsProcessor):
    """Sampling as a greedy choice among logits with noise, each row's from a generator of its own.

    The largest of logits with independent Gumbel noise is a sample of their softmax (Gumbel, 1954). So a row's text is
    what it would be alone, in any batch and whatever other threads draw, and torch's global generator is left alone.
    """

    def __init__(self, settings: GenerationSettings, rows: int, seeds: Sequence[int] | None = None) -> None:
        """Begin anew.

        Args:
            settings: With a temperature.
            rows: How many there are.
            seeds: What each one's noise is drawn from. None, where no seed was asked for: something new for each.

        Raises:
            ValueError: A seed was asked for, and nothing says what that means for each row.
        """
        assert settings.temperature is not None
        self._temperature, self._top_p = settings.temperature, settings.top_p
        if seeds is None and settings.seed is not None:
            raise ValueError(f"Seed {settings.seed} is one for all rows; each needs its own, so that texts differ.")
        chosen = seeds if seeds is not None else [secrets.randbits(63) for _ in range(rows)]
        self._generators = [torch.Generator().manual_seed(seed) for seed in chosen]

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """Logits ``(B, V)`` over the temperature, without the unlikely tail, with each row's next noise."""
        scores = scores.double()
        # Less than the largest, so that a tiny temperature leaves that one and not several infinities.
        scores = ((scores - scores.amax(dim=1, keepdim=True)) / self._temperature).float()
        if self._top_p < 1:
            scores = TopPLogitsWarper(self._top_p)(input_ids, scores)
        drawn = [torch.rand(scores.shape[1], generator=generator) for generator in self._generators]
        exponential = -torch.log(torch.stack(drawn).clamp_min(torch.finfo(torch.float32).tiny))
        return scores - torch.log(exponential).to(scores.device)


@dataclass(frozen=True)
class _Tokens:
    """What must not be written of one word."""

    always: Tensor
    """Tokens that hold its beginning and its end, after something that is no letter."""
    completing: list[Tensor]
    """Tokens that begin with what is left of it after so many letters."""


def _pieces(tokenizer: Any) -> list[str]:
    """What each token adds to a text, without capitals; special ones add nothing. Kept for the next batch."""
    if tokenizer not in _PIECES:
        special = set(tokenizer.all_special_ids)
        pieces = (show_token(tokenizer, token).casefold() for token in range(len(tokenizer)))
        _PIECES[tokenizer] = ["" if token in special else piece for token, piece in enumerate(pieces)]
    return _PIECES[tokenizer]


def _tokens(tokenizer: Any, word: str) -> _Tokens:
    """Of a word, looked up in the whole vocabulary once and kept for the next batch."""
    kept = _TABLES.setdefault(tokenizer, {})
    if (found := kept.get(word)) is None:
        inner = re.compile(rf".*(?<!\w)(?<!^){re.escape(word)}", re.DOTALL)
        found = _Tokens(
            _where(tokenizer, lambda piece: inner.match(piece) is not None),
            [_where(tokenizer, methodcaller("startswith", word[known:])) for known in range(len(word))],
        )
        if len(kept) >= _MOST_TABLES:
            kept.clear()
        kept[word] = found
    return found


def _where(tokenizer: Any, holds: Callable[[str], bool]) -> Tensor:
    return torch.tensor([token for token, piece in enumerate(_pieces(tokenizer)) if holds(piece)]).long()


class Forbidden(LogitsProcessor):
    """Takes tokens out that would complete a word, or one that begins with it.

    A list of token ids, as transformers' ``bad_words_ids``, is gone round by other tokens for the same letters
    (``r`` and ``ed``) and by capitals. Here every token is refused whose letters would complete the word behind the
    text so far: where the word begins at the beginning of a word, without regard to capitals.
    """

    def __init__(self, tokenizer: Any, words: Sequence[str]) -> None:
        """Of the words of one call.

        Raises:
            UsageError: A word has letters that this tokenizer may put together of several tokens.
        """
        self._pieces = _pieces(tokenizer)
        odd = [word for word in words if not word.isascii()]
        if odd and any("\ufffd" in piece for piece in self._pieces):
            raise UsageError(f"{quoted(odd[0])} cannot be forbidden: this base writes such letters in parts of one.")
        self._words = {word: _tokens(tokenizer, word) for word in (" ".join(w.casefold().split()) for w in words)}

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        """Logits ``(B, V)`` in which what must not come next is minus infinity."""
        scores = scores.clone()
        longest = max(map(len, self._words)) + 1
        for row, tokens in enumerate(input_ids.tolist()):
            said, number = "", len(tokens)
            while number and len(said) < longest:
                number -= 1
                said = self._pieces[tokens[number]] + said
            for word, tokens_of in self._words.items():
                scores[row, tokens_of.always.to(scores.device)] = -torch.inf
                for known, following in enumerate(tokens_of.completing):
                    before = said[: len(said) - known]
                    if said.endswith(word[:known]) and not re.search(r"\w\Z", before):
                        scores[row, following.to(scores.device)] = -torch.inf
        return scores
