"""Rows are answered in batches; one that is bad fails alone, or before more is done that would be lost."""

import threading
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import ImageError, PromptError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.runtime.rows import Row, answer_rows
from lorax_vlm.types import Generated


class Counting(AdapterLibrary):
    """Counts the batches that are answered."""

    batches = 0

    def generate(self, *arguments: Any) -> list[Generated]:
        self.batches += 1
        return super().generate(*arguments)


@pytest.fixture
def library(mini: LoadedModel, tmp_path: Path) -> Counting:
    return Counting(mini.entry, lambda: mini, AdapterStore(tmp_path / "store"))


def test_an_image_that_cannot_be_read_ends_it_at_once(library: Counting, scenes: list[Scene]) -> None:
    entry = library.base.entry
    images = [scenes[0].image, "gone.png", *(scene.image for scene in scenes[1:6])]
    rows = [Row(image, None, entry.caption_prompt, entry.caption_settings) for image in images]
    with pytest.raises(ImageError, match=r"gone\.png"):
        answer_rows(library, rows, batch_size=1)
    assert library.batches <= 1, "nothing is answered behind it"
    said = answer_rows(library, rows, batch_size=1, return_errors=True)
    assert [type(text) for text in said] == [Generated, ImageError, *[Generated] * 5]
    made = [*rows[2:], PromptError("a question", "it is empty.")]
    library.batches = 0
    with pytest.raises(PromptError):
        answer_rows(library, made, batch_size=1)
    assert not library.batches


def test_of_two_threads_one_loads_the_base(mini: LoadedModel, tmp_path: Path) -> None:
    loads: list[int] = []
    met = threading.Barrier(2)

    def load() -> LoadedModel:
        loads.append(1)
        threading.Event().wait(0.2)  # long enough for the other to ask
        return mini

    library = AdapterLibrary(mini.entry, load, AdapterStore(tmp_path / "store"))
    found: list[LoadedModel] = []

    def use() -> None:
        met.wait()
        found.append(library.base)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(loads), len(found)) == (1, 2)
    assert found[0] is found[1] is mini
