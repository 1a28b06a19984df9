"""Rows are answered in batches; one that is bad fails alone."""

from collections.abc import Sequence

import pytest
from PIL import Image

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import ImageError, LoraxError, PromptError, RowFailed
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.runtime.rows import Row, answer_rows, say_rows
from lorax_vlm.types import Generated, GenerationSettings


def test_a_bad_row_fails_alone(mini: LoadedModel, store: AdapterStore, scenes: list[Scene]) -> None:
    engine, entry = BaseEngine(mini, store), mini.entry
    images = [scenes[0].image, "gone.png", *(scene.image for scene in scenes[1:6])]
    rows: list[Row | LoraxError] = [Row(image, None, entry.caption_prompt, entry.caption_settings) for image in images]
    rows.append(PromptError("a question", "it is empty."))
    for size in (1, 4):
        said = answer_rows(engine.generate_batch, rows, batch_size=size)
        assert [type(text) for text in said] == [Generated, ImageError, *[Generated] * 5, PromptError]
    with pytest.raises(ImageError, match=r"gone\.png"):
        say_rows(engine.generate_batch, rows[:2], batch_size=2)  # type: ignore[arg-type]


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
    said = answer_rows(generate, rows, batch_size=4)
    assert [str(text) if isinstance(text, LoraxError) else text.text for text in said][::2] == ["a", "b"]
    assert isinstance(said[1], RowFailed)
    assert isinstance(said[1].__cause__, KeyError)
    assert asked == [["a", "bad", "b"], ["a"], ["bad"], ["b"]]
