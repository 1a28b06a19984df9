"""Settings that cannot work are refused where they are made."""

import pytest

from lorax_vlm.training.config import TrainConfig
from lorax_vlm.types import Caption, Generated, GenerationSettings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"min_new_tokens": 31}, "min_new_tokens=31 is above max_new_tokens=30"),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0"),
        ({"num_beams": 0}, "num_beams"),
        ({"temperature": 0.0}, "greedy"),
    ],
)
def test_decoding(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**options)  # type: ignore[arg-type]


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
