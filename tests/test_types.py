"""Settings that cannot work are refused where they are made."""

from typing import Any

import pytest

from lorax_vlm.errors import UsageError
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.types import Caption, Generated, GenerationSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"min_new_tokens": 31}, "min_new_tokens=31 is above max_new_tokens=30"),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2.5}, "num_beams must be a whole number of at least 1, got 2.5"),
        ({"num_beams": "3"}, "num_beams must be a whole number of at least 1, got '3'"),
        ({"num_beams": 100_000}, "num_beams must be at most 100"),
        ({"num_beams": True}, "num_beams must be a whole number"),
        ({"max_new_tokens": None}, "max_new_tokens must be a whole number"),
        ({"temperature": 0.0}, "greedy"),
        ({"temperature": float("nan")}, "temperature must be a number above 0"),
        ({"temperature": float("inf")}, "temperature must be a number above 0"),
        ({"temperature": 1.0, "num_beams": 3}, "use one of them"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p must be a number above 0 and at most 1"),
        ({"top_p": 0.0}, "top_p must be a number above 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number above 0"),
        ({"length_penalty": "long"}, "length_penalty must be a number"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_decoding(options: dict[str, Any], message: str) -> None:
    for make in (lambda: GenerationSettings(**options), lambda: GenerationSettings().replace(**options)):
        with pytest.raises(UsageError, match=message):
            make()


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("num_return_sequences", "one row for each text"),
        ("max_length", "max_new_tokens, which does not count the prompt"),
        ("do_sample", "temperature=..., which samples when it is given"),
        ("top_k", "Known: max_new_tokens, "),
    ],
)
def test_what_others_call_it_is_known(name: str, instead: str) -> None:
    with pytest.raises(UsageError, match=f"Unknown decoding settings: {name}") as caught:
        GenerationSettings().replace(**{name: 3})
    assert instead in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"gradient_accumulation": 0}, "gradient_accumulation"),
        ({"eval_every": 0}, "eval_every"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"max_grad_norm": -1.0}, "above 0"),
        ({"warmup_share": 1.0}, "warmup_share"),
        ({"patience": 0}, "patience"),
    ],
)
def test_training(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_a_caption_is_text_that_knows_its_maker() -> None:
    caption = Caption.of(Generated("a cat", "length", 2), "some-base", "mine")
    assert caption == "a cat"
    assert (caption.base, caption.adapter, caption.finish) == ("some-base", "mine", "length")
