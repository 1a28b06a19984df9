"""Rows are answered in batches; one that is bad fails alone."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.examples import answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import AdapterMemoryExceeded, ImageError, LoraxError, OutOfMemory, PromptError, RowFailed
from lorax_vlm.exchange.teacher import ask_teacher
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.requests import Request, Result
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import BatchSize, Row, answer_rows
from lorax_vlm.types import Generated, GenerationSettings


def test_a_bad_row_fails_alone(mini: LoadedModel, store: AdapterStore, scenes: list[Scene]) -> None:
    engine, entry = BaseEngine(mini, store), mini.entry
    images = [scenes[0].image, "gone.png", *(scene.image for scene in scenes[1:6])]
    rows: list[Row | LoraxError] = [Row(image, None, entry.caption_prompt, entry.caption_settings) for image in images]
    rows.append(PromptError("a question", "it is empty."))
    for size in (1, 4):
        said = answer_rows(engine.generate_batch, rows, size=BatchSize(size))
        assert [type(text) for text in said] == [Generated, ImageError, *[Generated] * 5, PromptError]
    with pytest.raises(ImageError, match=r"gone\.png"):
        engine.say(rows[:2])  # type: ignore[arg-type]


def test_a_batch_that_fails_is_answered_row_by_row(scenes: list[Scene]) -> None:
    settings, asked = GenerationSettings(), []

    def generate(
        adapters: Sequence[str | None], pictures: Sequence[Image.Image], prompts: Sequence[str], _: GenerationSettings
    ) -> list[Generated]:
        asked.append(list(prompts))
        if "bad" in prompts:
            raise KeyError("bad")
        return [Generated(prompt, "eos", 1) for prompt in prompts]

    rows = [Row(scenes[0].image, None, prompt, settings) for prompt in ("a", "bad", "b")]
    said = answer_rows(generate, rows, size=BatchSize(4))
    assert [str(text) if isinstance(text, LoraxError) else text.text for text in said][::2] == ["a", "b"]
    assert isinstance(said[1], RowFailed)
    assert isinstance(said[1].__cause__, KeyError)
    assert asked == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]


class Small:
    """A machine with memory for so many rows at a time."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.tried: list[int] = []

    def generate(
        self, adapters: Sequence[str | None], pictures: Sequence[Image.Image], prompts: Sequence[str], _: object
    ) -> list[Generated]:
        self.tried.append(len(prompts))
        if len(prompts) > self.most:
            raise self.error
        return [Generated(prompt, "eos", 1) for prompt in prompts]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_memory_does_not_suffice_for_is_halved_until_it_fits(
    error: Exception, scenes: list[Scene]
) -> None:
    machine, size = Small(5, error), BatchSize(16)
    rows = [Row(scenes[0].image, None, str(number), GenerationSettings()) for number in range(40)]
    said = answer_rows(machine.generate, rows, size=size)
    assert [text.text for text in said if isinstance(text, Generated)] == [str(number) for number in range(40)]
    assert machine.tried == [16, 8, *[4] * 10]
    assert size.rows == 4
    machine.tried.clear()
    answer_rows(machine.generate, rows[:8], size=size)
    assert machine.tried == [4, 4], "it is remembered"


def test_one_row_too_many_is_no_answer(scenes: list[Scene]) -> None:
    machine = Small(0, MemoryError())
    rows = [Row(scenes[0].image, None, "a", GenerationSettings())] * 2
    said = answer_rows(machine.generate, rows, size=BatchSize(2))
    assert [type(text) for text in said] == [OutOfMemory] * 2
    assert "Fewer beams" in str(said[0])
    with pytest.raises(OutOfMemory):
        Result(None, said[0]).text_or_error()  # type: ignore[arg-type]


def test_what_was_answered_before_memory_or_a_row_failed_is_not_asked_again(scenes: list[Scene]) -> None:
    asked: list[str] = []

    def generate(_: object, pictures: object, prompts: Sequence[str], settings: object) -> list[Generated]:
        asked.extend(prompts)
        if "huge" in prompts:
            raise MemoryError
        if "bad" in prompts and len(prompts) > 1:
            raise KeyError("bad")
        return [Generated(prompt, "eos", 1) for prompt in prompts]

    prompts = ["a", "b", "huge", "c", "bad", "d"]
    rows = [Row(scenes[0].image, None, prompt, GenerationSettings()) for prompt in prompts]
    said = answer_rows(generate, rows, size=BatchSize(2))
    assert [text.text if isinstance(text, Generated) else type(text) for text in said] == [
        *("a", "b", OutOfMemory, "c", "bad", "d")
    ]
    assert asked.count("a") == asked.count("b") == 1


def test_whatever_is_asked_of_an_engine_is_halved(
    mini: LoadedModel, store: AdapterStore, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher, side effects and likelihoods ask the same engine, and what one learns of memory the others know."""
    engine, entry = BaseEngine(mini, store, batch_size=16), mini.entry
    examples = [answered(scene.image, "what color is it?", ["red"], str(n)) for n, scene in enumerate(scenes)]
    expected = ask_teacher(engine, None, examples, entry.answer_settings)
    generate, confidences = mini.family.generate, mini.family.confidences

    def most(rows: int, of: Callable[..., Any]) -> Callable[..., Any]:
        def tried(model: object, features: Any, prompts: Sequence[str], *given: Any) -> Any:
            if len(prompts) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return of(model, features, prompts, *given)

        return tried

    with monkeypatch.context() as patch:
        patch.setattr(mini.family, "generate", most(4, generate))
        patch.setattr(mini.family, "confidences", most(3, confidences))
        assert [a.text for a in ask_teacher(engine, None, examples, entry.answer_settings)] == [
            a.text for a in expected
        ]
        assert engine.batch_size == 3
        patch.setattr(mini.family, "confidences", most(0, confidences))
        with pytest.raises(OutOfMemory):
            engine.likelihoods([Request.about(scenes[0].image)], ["red"])


def test_other_errors_halve_nothing(scenes: list[Scene]) -> None:
    machine, size = Small(1, AdapterMemoryExceeded(["a", "b"], 2, 1)), BatchSize(4)
    rows = [Row(scenes[0].image, None, "a", GenerationSettings())] * 4
    assert [text.text for text in answer_rows(machine.generate, rows, size=size)] == ["a"] * 4  # type: ignore[union-attr]
    assert (machine.tried, size.rows) == ([4, 1, 1, 1, 1], 4)
