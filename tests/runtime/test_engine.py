"""Requests of every kind in one call: each row has its own adapter, prompt and decoding, or its own error."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import AdapterNotFound, ImageError, LoraxError, PromptError, RowFailed, UsageError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.requests import ImagePart, Request, Result, Turn
from lorax_vlm.runtime.engine import BaseEngine, stream
from lorax_vlm.runtime.fake import FakeEngine
from lorax_vlm.skills import answer, caption
from lorax_vlm.workspace import Workspace
from tests.adapters_for_tests import write_manifest, write_random_adapter

COLOR = "What color is the background?"


@pytest.fixture
def engine(mini: LoadedModel, store: AdapterStore, tmp_path: Path):
    template = mini.entry.question_template
    kinds = {"counting": (answer("counting"), template), "short": (caption("concise"), "a photo of")}
    for seed, (name, (skill, prompt)) in enumerate(kinds.items()):
        folder = write_random_adapter(mini, tmp_path / name, seed=seed, scale=0.6)
        store.add(f"{mini.name}.{name}", folder, write_manifest(mini, folder, skill=skill, prompt=prompt))
    engine = BaseEngine(mini, store, batch_size=3)
    yield engine
    engine.restore_base()


def test_rows_of_all_kinds_are_what_they_are_alone(engine: BaseEngine, scenes: list[Scene]) -> None:
    image = scenes[0].image
    requests = [
        Request.about(image),
        Request.about(image, COLOR),
        Request.about(image, COLOR, "counting"),
        Request.about(image, None, "short"),
        Request.about(image, COLOR, "short"),
        Request.about(image, COLOR, "counting", max_new_tokens=2),
        Request.about(image, COLOR, "counting", num_beams=3),
        Request.about(scenes[1].image, COLOR, "counting@1"),
    ]
    together = engine.generate(requests)
    assert all(result.error is None for result in together)
    alone = [engine.generate([request])[0] for request in requests]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.text.adapter for r in together] == [request.adapter for request in requests]
    assert len({str(r.text) for r in together}) > 4


def test_each_row_has_its_own_error(engine: BaseEngine, scenes: list[Scene]) -> None:
    image = scenes[0].image
    two = Request((Turn("user", (ImagePart(image), ImagePart(image), "which?")),))
    requests = [
        Request.about("gone.png"),
        Request.about(image, "  "),
        Request.about(image, COLOR, "nobody"),
        Request.about(image, None, "counting"),
        Request.about(image, COLOR, max_new_tokens=0),
        Request.about(image, COLOR, nonsense=1),
        two,
        Request.about(image, COLOR),
    ]
    results = engine.generate(requests)
    expected = [ImageError, PromptError, AdapterNotFound, PromptError, UsageError, UsageError, UsageError]
    assert [type(result.error) for result in results[:-1]] == expected
    assert results[-1].text == scenes[0].background
    with pytest.raises(AdapterNotFound):
        _ = results[2].text


def test_an_adapter_stays_one_version_for_a_steady_engine(
    engine: BaseEngine, mini: LoadedModel, store: AdapterStore, scenes: list[Scene], tmp_path: Path
) -> None:
    request = Request.about(scenes[0].image, COLOR, "counting")
    steady = engine.steady()
    before = steady.generate([request])[0].text
    folder = write_random_adapter(mini, tmp_path / "new", seed=9, scale=0.9)
    manifest = write_manifest(mini, folder, skill=answer("counting"), prompt="Answer: {question}")
    store.add(f"{mini.name}.counting", folder, manifest, replace=True)
    assert steady.generate([request])[0].text == before
    now = engine.generate([request])[0].text
    assert now == engine.generate([dataclasses.replace(request, adapter="counting@2")])[0].text
    assert now != before


def test_the_store_is_asked_for_an_adapter_as_often_for_many_rows_as_for_one(
    engine: BaseEngine, scenes: list[Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.generate([Request.about(scenes[0].image, COLOR, "counting")])
    read: list[str] = []
    get = AdapterStore.get
    monkeypatch.setattr(AdapterStore, "get", lambda self, name: read.append(name) or get(self, name))
    counts = []
    for rows in (1, 9):
        read.clear()
        engine.generate([Request.about(scene.image, COLOR, "counting") for scene in scenes[:rows]])
        counts.append(len(read))
    assert counts[0] == counts[1]


def test_a_stream_reads_a_window_at_a_time() -> None:
    taken: list[int] = []

    def requests():
        for number in range(10):
            taken.append(number)
            yield Request.about(f"{number}.png", str(number))

    def say(request: Request) -> str:
        if request.single()[1] == "3":
            raise PromptError("three", "it is odd.")
        return f"said {request.single()[1]}"

    engine = FakeEngine(say)
    found = []
    for result in stream(engine.generate, requests(), 4):
        assert len(taken) <= 4 * (len(found) // 4 + 1)
        found.append(result)
    assert [str(r.error or r.text) for r in found][2:5] == ["said 2", str(PromptError("three", "it is odd.")), "said 4"]
    assert len(engine.asked) == 10


def test_a_row_that_fails_goes_by_its_number_among_all() -> None:
    def generate(some: Sequence[Request]) -> list[Result]:
        results = FakeEngine(lambda request: "said").generate(some)
        for number, request in enumerate(some):
            if request.single()[0] == "6.png":
                results[number] = Result(None, RowFailed(number, ValueError("odd")))
        return results

    requests = [Request.about(f"{number}.png") for number in range(9)]
    errors = {number: r.error for number, r in enumerate(stream(generate, requests, 4)) if r.error is not None}
    assert list(errors) == [6]
    assert isinstance(errors[6], RowFailed)
    assert errors[6].row == 6
    assert "Row 6 failed" in str(errors[6])


def test_what_no_request_can_be_asked_is_told_before_any_is_answered(engine: BaseEngine, scenes: list[Scene]) -> None:
    good = Request.about(scenes[0].image, COLOR)
    engine.require_askable([good, Request.about("gone.png")])  # images are opened with their batch
    with pytest.raises(AdapterNotFound):
        engine.require_askable([good, Request.about(scenes[0].image, COLOR, "nobody")])
    with pytest.raises(PromptError, match="7"):
        engine.require_askable([good, Request.about(scenes[0].image, 7)])  # type: ignore[arg-type]


def test_a_version_that_was_replaced_or_removed_leaves_memory(
    engine: BaseEngine, mini: LoadedModel, store: AdapterStore, scenes: list[Scene], tmp_path: Path
) -> None:
    request = Request.about(scenes[0].image, COLOR, "counting")
    engine.generate([request])
    assert engine.in_memory == [f"{mini.name}.counting@1"]
    folder = write_random_adapter(mini, tmp_path / "new", seed=9, scale=0.9)
    manifest = write_manifest(mini, folder, skill=answer("counting"), prompt="Answer: {question}")
    store.add(f"{mini.name}.counting", folder, manifest, replace=True)
    engine.generate([request])
    assert engine.in_memory == [f"{mini.name}.counting@2"]
    engine.forget(f"{mini.name}.counting")
    assert engine.in_memory == []


def test_a_workspace_runs_on_any_engine(tmp_path: Path) -> None:
    engine = FakeEngine(lambda request: f"{request.adapter}: {request.single()[1]}")
    workspace = Workspace("mini", store=tmp_path, engine=engine)
    assert workspace.ask("a.png", "why?", base="blip2_opt") == "None: why?"
    assert workspace.compare("a.png", [None, "x"], base="vilt") == {"base": "None: None", "x": "x: None"}
    assert not workspace.bases.loaded
    with pytest.raises(UsageError, match="Name an adapter, or a base"):
        workspace.ask("a.png")
    with pytest.raises(LoraxError):
        workspace.ask("a.png", adapter="nobody")
