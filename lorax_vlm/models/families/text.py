"""Text on its way into and out of a language model: what the generative families share."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from lorax_vlm.types import FinishReason, Generated, GenerationSettings


def clean_text(text: str) -> str:
    """Every run of white space as one space, none at the ends."""
    return " ".join(text.split())


def token_ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of user text and their character ranges, without bos and eos; special tokens in it are ordinary characters.

    So a question that contains ``<image>`` cannot claim another row's image features, and ``</s>`` ends nothing.
    """
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
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


_drawing = threading.Lock()


@contextmanager
def drawing(settings: GenerationSettings) -> Iterator[None]:
    """Run a generation; one that samples has torch's global generator for itself, whatever other threads do.

    With a seed it starts from there, and the generator is given back as it was.
    """
    if settings.temperature is None:
        yield
        return
    with _drawing, torch.random.fork_rng(enabled=settings.seed is not None):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        yield


def make_generation_config(settings: GenerationSettings, room: int, **token_ids: int) -> GenerationConfig:
    """Every setting of a call, none left to a library default.

    Args:
        settings: What was asked for.
        room: Positions left for new tokens.
        token_ids: ``bos_token_id``, ``eos_token_id``, ``pad_token_id``, ``decoder_start_token_id``.
    """
    sampling = settings.temperature is not None
    return GenerationConfig(
        max_new_tokens=min(settings.max_new_tokens, room),
        min_new_tokens=settings.min_new_tokens,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty if settings.num_beams > 1 else 1.0,
        repetition_penalty=1.0,
        do_sample=sampling,
        temperature=settings.temperature if sampling else 1.0,
        top_p=settings.top_p if sampling else 1.0,
        top_k=0 if sampling else 50,
        **token_ids,
    )


def repetition_penalty(settings: GenerationSettings) -> LogitsProcessorList:
    """The penalty as a processor of its own: it falls on new tokens only, as in BLIP-2's code.

    As a setting the library would warn of just that on every call.
    """
    if settings.repetition_penalty == 1.0:
        return LogitsProcessorList()
    return LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])


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
