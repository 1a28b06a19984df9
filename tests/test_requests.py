"""What of a result is a row's own."""

import pytest

from lorax_vlm.errors import (
    AdapterMemoryExceeded,
    AdapterNotFound,
    ImageError,
    LoraxError,
    PathError,
    PromptError,
    RowFailed,
    UsageError,
)
from lorax_vlm.requests import Result


@pytest.mark.parametrize(
    "error",
    [ImageError("a.png", "it is empty."), PromptError("the question ''", "it is empty."), RowFailed(0, OSError())],
)
def test_an_error_of_a_row_stands_in_its_place(error: LoraxError) -> None:
    assert Result(None, error).text_or_error() is error


@pytest.mark.parametrize(
    "error",
    [
        AdapterNotFound("one", "/store", []),
        UsageError("top_k: unknown"),
        PathError("/store", "Input/output error"),
        AdapterMemoryExceeded(["a", "b"], 2, 1),
    ],
)
def test_what_would_befall_every_row_alike_is_no_answer(error: LoraxError) -> None:
    with pytest.raises(type(error)):
        Result(None, error).text_or_error()
