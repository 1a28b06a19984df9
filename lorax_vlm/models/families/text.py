"""Text on its way into and out of a language model: what the generative families share."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from lorax_vlm.errors import PromptError
from lorax_vlm.foreign import quoted, text_problem
from lorax_vlm.types import FinishReason, Generated


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


def row_batch(rows: Sequence[list[int]], pad_id: int, *, left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``(B, T)`` of rows of different length."""
    return {
        "input_ids": pad_rows(rows, pad_id, left=left),
        "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, left=left),
    }


def decode_new_tokens(tokenizer: Any, ids: list[int], ends: Collection[int], pad_id: int) -> Generated:
    """Generated ids, without the prompt's, to text: up to the first of the tokens that end one."""
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    finished = end is not None
    kept = ids[:end] if finished else [token for token in ids if token != pad_id]
    finish: FinishReason = "empty" if finished and not kept else "eos" if finished else "length"
    return Generated(tokenizer.decode(kept, skip_special_tokens=True).strip(), finish, len(kept))


def require_equal_rows(**counts: int) -> None:
    """Raise ``ValueError`` unless all numbers of rows are equal.

    transformers takes the first image for two texts without a word, and fails in the model for two texts to one.
    """
    if len(set(counts.values())) != 1:
        listing = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"One row each is needed, got {listing}.")
