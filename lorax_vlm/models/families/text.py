"""Text on its way into and out of a language model: what the generative families share."""

import secrets
from collections.abc import Sequence
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

from lorax_vlm.errors import PromptError
from lorax_vlm.foreign import quoted, text_problem
from lorax_vlm.types import FinishReason, Generated, GenerationSettings


def clean_text(text: str) -> str:
    """Every run of white space as one space, none at the ends.

    Raises:
        PromptError: It has half of a character, which no tokenizer takes, or is no text.
    """
    wrong = text_problem(text.replace("\0", " ")) if isinstance(text, str) else "no text in it"
    if wrong is not None:
        raise PromptError(quoted(text), f"it has {wrong}.")
    return " ".join(text.split())


def token_ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of user text and their character ranges, without bos and eos; special tokens in it are ordinary characters.

    So a question that contains ``<image>`` cannot claim another row's image features, and ``</s>`` ends nothing.
    """
    encoding = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return encoding["input_ids"], encoding["offset_mapping"]


def break_special_tokens(tokenizer: Any, text: str) -> str:
    """Put a space into every special token a text contains.

    A unigram tokenizer (T5's) has ``</s>`` among its ordinary pieces and finds it in text, whatever it is told.
    """
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def show_token(tokenizer: Any, token: int) -> str:
    """One token with the space before it, which decoding a token alone drops in some tokenizers."""
    text = tokenizer.decode([token])
    return f" {text}" if str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") else text


def pad_rows(rows: Sequence[list[int]], value: int, *, left: bool = False) -> Tensor:
    """Rows of different length as one tensor ``(B, T)``."""
    width = max(map(len, rows))
    padded = [[value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows]
    return torch.tensor(padded)


class RowSampler(LogitsProcessor):
    """Sampling as a greedy choice among logits with noise, each row's from a generator of its own.

    The largest of logits with independent Gumbel noise is a sample of their softmax (Gumbel, 1954). So a row's text is
    what it would be alone, in any batch and whatever other threads draw, and torch's global generator is left alone.
    """

    def __init__(self, settings: GenerationSettings, rows: int) -> None:
        """Begin anew: with a seed every row draws what it would draw alone, without one something of its own."""
        assert settings.temperature is not None
        self._temperature, self._top_p = settings.temperature, settings.top_p
        seeds = [secrets.randbits(63) if settings.seed is None else settings.seed for _ in range(rows)]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

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


def make_generation_config(settings: GenerationSettings, room: int, **token_ids: int) -> GenerationConfig:
    """Every setting of a call, none left to a library default.

    Args:
        settings: What was asked for.
        room: Positions left for new tokens.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``, ``decoder_start_token_id``.
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


def logits_processors(settings: GenerationSettings, rows: int) -> LogitsProcessorList:
    """What changes logits before a token is chosen: the repetition penalty, then sampling.

    The penalty is a processor of its own: so it falls on new tokens only, as in BLIP-2's code; as a setting the library
    would warn of just that on every call.
    """
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature is not None:
        processors.append(RowSampler(settings, rows))
    return processors


def decode_new_tokens(tokenizer: Any, ids: list[int], eos_id: int, pad_id: int) -> Generated:
    """Generated ids, without the prompt's, to text."""
    finished = eos_id in ids
    kept = ids[: ids.index(eos_id)] if finished else [token for token in ids if token != pad_id]
    finish: FinishReason = "empty" if finished and not kept else "eos" if finished else "length"
    return Generated(tokenizer.decode(kept, skip_special_tokens=True).strip(), finish, len(kept))


def require_equal_rows(**counts: int) -> None:
    """Raise ``ValueError`` unless all numbers of rows are equal.

    transformers takes the first image for two texts without a word, and fails in the model for two texts to one.
    """
    if len(set(counts.values())) != 1:
        listing = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"One row each is needed, got {listing}.")
