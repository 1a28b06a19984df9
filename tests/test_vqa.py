"""The second front door, on the miniatures."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import (
    AdapterExists,
    AdapterNotFound,
    ExampleError,
    ImageError,
    LoraxError,
    PromptError,
    UnknownModel,
    UsageError,
)
from lorax_vlm.evaluation.questions import compare_reports
from lorax_vlm.models.catalog import MINIATURE_KEYS
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.reports.questions_page import write_vqa_page
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem
from tests.workspaces_for_tests import shared_workspace

FEW = TrainConfig(max_steps=4, batch_size=4, eval_every=2, learning_rate=1e-3, patience=None)
COLOR = "What color is the background?"


@pytest.fixture
def system(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> Iterator[VQASystem]:
    """On the shared miniatures, with a store of its own."""
    with shared_workspace(load_shared, tmp_path / "store", batch_size=5) as workspace:
        yield VQASystem(workspace=workspace)


@pytest.fixture
def splits(scenes: list[Scene]) -> DataSplits:
    examples = [answered(s.image, q, [a], f"scene {s.seed}", k) for s in scenes for k, q, a in s.questions()[:2]]
    return DataSplits(examples[:16], examples[16:], "twelve scenes")


# --- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MINIATURE_KEYS)
def test_every_family_answers_simple_questions(system: VQASystem, scenes: list[Scene], model: str) -> None:
    answers = system.answer_questions([scene.image for scene in scenes], [COLOR] * len(scenes), model)
    assert sum(answer == scene.background for answer, scene in zip(answers, scenes, strict=True)) >= 11
    assert {answer.base for answer in answers} == {MINIATURE_KEYS[model]}  # type: ignore[union-attr]
    assert {answer.adapter for answer in answers} == {None}  # type: ignore[union-attr]


def test_the_call_of_the_specification(system: VQASystem, scenes: list[Scene], splits: DataSplits) -> None:
    system.create_vqa_adapter("blip2_flan", "counting", "counting", data=splits, config=FEW, progress=False)
    answer = system.answer_question(scenes[0].image, "How many shapes are there?", "blip2_flan", "counting")
    assert (answer.base, answer.adapter, answer.finish) == ("blip2-flan-mini", "counting", "eos")


@pytest.mark.parametrize("model", MINIATURE_KEYS)
def test_a_bad_row_fails_alone(system: VQASystem, scenes: list[Scene], model: str) -> None:
    images = [scene.image for scene in scenes]
    expected = system.answer_questions(images, [COLOR] * 12, model)
    images[3], questions = Path("nowhere.png"), [COLOR] * 12  # type: ignore[call-overload]
    questions[7] = "   "
    given = system.answer_questions(images, questions, model, return_errors=True)
    assert isinstance(given[3], ImageError)
    assert isinstance(given[7], PromptError)
    assert [a for i, a in enumerate(given) if i not in (3, 7)] == [a for i, a in enumerate(expected) if i not in (3, 7)]
    with pytest.raises(PromptError, match="it is empty or not text"):
        system.answer_questions(images, questions, model)
    with pytest.raises(ImageError, match=r"nowhere\.png"):
        system.answer_questions(images, [COLOR] * 12, model)


def avif(damaged: bool) -> bytes:
    """A picture in a format whose decoder raises other errors than the rest."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "AVIF")
    data = bytearray(buffer.getvalue())
    if damaged:
        data[data.index(b"mdat") + 4] = 0
    return bytes(data)


ROWS = [
    ("http://[::1", COLOR, ImageError, "not a well-formed address"),
    ("http://h:port/", COLOR, ImageError, "not a well-formed address"),
    ("http://127.0.0.1:9/a.png", COLOR, ImageError, "not public"),
    ("https://example.invalid/a.png", COLOR, ImageError, ""),
    ("ftp://example.org/a.png", COLOR, ImageError, "no such file"),
    ("~nobody_here/a.png", COLOR, ImageError, "cannot be read"),
    ("a\0b.png", COLOR, ImageError, "cannot be read"),
    ("half \ud83d.png", COLOR, ImageError, "cannot be read"),
    ("x" * 5000, COLOR, ImageError, "cannot be read"),
    ("/dev/zero", COLOR, ImageError, "no ordinary file"),
    (avif(damaged=True), COLOR, ImageError, "damaged"),
    (b"", COLOR, ImageError, "empty"),
    (None, COLOR, ImageError, "expected a path"),
    (avif(damaged=False), "", PromptError, "empty"),
    (avif(damaged=False), "\u200b", PromptError, "empty"),
    (avif(damaged=False), None, PromptError, "not text"),
    (avif(damaged=False), ["What?"], PromptError, "not text"),
    (avif(damaged=False), "half \ud83d", PromptError, "half"),
    (avif(damaged=False), "What? " * 400, PromptError, "Cannot ask"),
]


@pytest.mark.parametrize("model", ["blip2_opt", "vilt"])
def test_whatever_is_wrong_with_a_row_the_others_are_answered(
    system: VQASystem, scenes: list[Scene], model: str
) -> None:
    good = [scene.image for scene in scenes[:2]]
    images, questions = [row[0] for row in ROWS], [row[1] for row in ROWS]
    given = system.answer_questions([good[0], *images, good[1]], [COLOR, *questions, COLOR], model, return_errors=True)  # type: ignore[list-item]
    assert [given[0], given[-1]] == system.answer_questions(good, [COLOR] * 2, model)
    found = [(type(answer), str(answer)) for answer in given[1:-1]]
    assert [kind for kind, _ in found] == [kind for _, _, kind, _ in ROWS]
    assert [text for (_, text), (*_, reason) in zip(found, ROWS, strict=True) if reason not in text] == []
    assert all(isinstance(answer, ValueError) for answer in given[1:-1])


def test_odd_batches_are_refused(system: VQASystem, scenes: list[Scene]) -> None:
    with pytest.raises(PromptError) as caught:
        system.answer_question(scenes[0].image, "", "blip2_opt")
    assert isinstance(caught.value, ExampleError)
    assert system.answer_questions([], [], "blip2_opt") == []
    for size in (0, -1, 2.5, True):
        with pytest.raises(UsageError, match="batch_size must be a whole number of at least 1"):
            VQASystem("mini", batch_size=size)  # type: ignore[arg-type]
    picture = scenes[0].image
    for images in ("photo.jpg", picture, np.asarray(picture), Path("photo.jpg"), {"a": picture}, None, 5):
        with pytest.raises(UsageError, match="A list of images is needed"):
            system.answer_questions(images, [COLOR], "blip2_opt")  # type: ignore[arg-type]
    for adapter in (5, {"a": "b"}):
        with pytest.raises(UsageError, match="A list of adapters is needed"):
            system.answer_questions([picture], [COLOR], "blip2_opt", adapter)  # type: ignore[arg-type]
    several = (picture for _ in range(2)), np.array([COLOR] * 2)
    expected = [system.answer_question(picture, COLOR, "blip2_opt")] * 2
    assert system.answer_questions(*several, "blip2_opt") == expected  # type: ignore[arg-type]
    assert system.answer_questions(np.stack([np.asarray(picture)] * 2), [COLOR] * 2, "blip2_opt") == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, 5, ["vilt"], "", "no such model", "../x/y/z"])
def test_what_is_no_model(model: object, system: VQASystem, scenes: list[Scene]) -> None:
    with pytest.raises(UnknownModel):
        system.answer_question(scenes[0].image, COLOR, model)  # type: ignore[arg-type]


def test_overlong_questions_fail_alone_too(system: VQASystem, scenes: list[Scene]) -> None:
    for model in MINIATURE_KEYS:
        given = system.answer_questions([scenes[0].image] * 2, ["red " * 1000, COLOR], model, return_errors=True)
        assert isinstance(given[0], PromptError)
        assert given[1] == system.answer_question(scenes[0].image, COLOR, model)


def test_unknown_names_never_mean_the_base(system: VQASystem, scenes: list[Scene]) -> None:
    with pytest.raises(AdapterNotFound, match=r"No adapter .counting'"):
        system.answer_question(scenes[0].image, COLOR, "vilt", "counting")
    with pytest.raises(UnknownModel):
        system.answer_question(scenes[0].image, COLOR, "blip3")
    with pytest.raises(ValueError, match="got 1 and 2"):
        system.answer_questions([scenes[0].image], [COLOR, COLOR], "vilt")


# --- adapters -------------------------------------------------------------------------------------------------------


def test_two_models_may_have_adapters_of_one_name(system: VQASystem, splits: DataSplits, scenes: list[Scene]) -> None:
    for model in ("blip2_opt", "vilt"):
        system.create_vqa_adapter(model, "skill", "skill", data=splits, config=FEW, progress=False)
    assert [stored.name for stored in system.list_adapters()] == ["blip2-opt-mini.skill", "vilt-mini.skill"]
    assert [stored.name for stored in system.list_adapters("vilt")] == ["vilt-mini.skill"]
    for model in ("blip2_opt", "vilt"):
        assert system.answer_question(scenes[0].image, COLOR, model, "skill").adapter == "skill"


def test_captioning_does_not_list_adapters_that_answer_questions(system: VQASystem, splits: DataSplits) -> None:
    system.create_vqa_adapter("blip2_opt", "skill", "skill", data=splits, config=FEW, progress=False)
    assert BLIP2CaptioningSystem("blip2-opt-mini", store=system.store.root).list_adapters() == []


def test_the_same_adapter_is_not_trained_twice(system: VQASystem, splits: DataSplits) -> None:
    first = system.create_vqa_adapter("vilt", "skill", "skill", data=splits, config=FEW, progress=False)
    assert system.create_vqa_adapter("vilt", "skill", "skill", data=splits, config=FEW, progress=False) == first
    more = dataclasses.replace(FEW, max_steps=6)
    with pytest.raises(AdapterExists):
        system.create_vqa_adapter("vilt", "skill", "skill", data=splits, config=more, progress=False)
    again = system.create_vqa_adapter("vilt", "skill", "skill", data=splits, config=more, replace=True, progress=False)
    assert again.version == 2


def test_a_real_checkpoint_without_data_gets_an_untrained_adapter_or_an_error(system: VQASystem) -> None:
    hub = VQASystem()
    assert hub.entry("blip2_flan").source == "Salesforce/blip2-flan-t5-xl"
    with pytest.raises(ValueError, match="has no built-in examples"):
        hub.training_data("blip2_flan", "counting")
    with pytest.raises(ValueError, match="Unknown task 'singing'"):
        hub.create_vqa_adapter("blip2_flan", "x", "singing")


def test_models_by_key(tmp_path: Path) -> None:
    assert VQASystem().models["vilt"] == "vilt"
    mixed = VQASystem({"vilt": "vilt-mini"})
    assert (mixed.entry("vilt").name, mixed.entry("blip2_opt").name) == ("vilt-mini", "blip2-opt-2.7b")
    with pytest.raises(ValueError, match="Unknown model keys vlit"):
        VQASystem({"vlit": "vilt-mini"})
    with pytest.raises(ValueError, match="models must be 'hub', 'mini'"):
        VQASystem("small")


# --- figures --------------------------------------------------------------------------------------------------------


def test_evaluation_against_a_count_by_hand(system: VQASystem, scenes: list[Scene]) -> None:
    examples = [answered(s.image, COLOR, [s.background], f"scene {s.seed}", "color") for s in scenes]
    examples += [answered(s.image, COLOR, ["beige"], f"other {s.seed}", "wrong") for s in scenes[:4]]
    report = system.evaluate("blip2_opt", examples=examples, source="mine")
    right = sum(
        system.answer_question(e.image, COLOR, "blip2_opt") == e.target  # type: ignore[arg-type]
        for e in examples
    )
    assert report.metric == "exact match"
    assert report.accuracy.value == pytest.approx(right / 16)
    assert report.by_kind["wrong"].value == 0.0
    assert report.by_kind["color"].value == pytest.approx(right / 12)
    assert report.accuracy.low < report.accuracy.value < report.accuracy.high


def test_several_annotators_are_judged_by_the_challenges_rule(system: VQASystem, scenes: list[Scene]) -> None:
    examples = [answered(s.image, COLOR, [s.background] * 3 + ["beige"] * 7, f"scene {s.seed}") for s in scenes]
    report = system.evaluate("blip2_opt", examples=examples)
    right = [
        a == s.background
        for a, s in zip(
            system.answer_questions([s.image for s in scenes], [COLOR] * 12, "blip2_opt"), scenes, strict=True
        )
    ]
    assert report.metric == "vqa accuracy"
    assert report.accuracy.value == pytest.approx(0.9 * sum(right) / 12)


def test_ablations_expose_who_does_not_look(system: VQASystem, scenes: list[Scene]) -> None:
    looked_up = [answered(s.image, COLOR, [s.background], f"scene {s.seed}") for s in scenes]
    report = system.evaluate("blip2_opt", examples=looked_up, ablations=True)
    assert report.blank is not None
    assert report.shuffled is not None
    assert report.accuracy.value > 0.9
    assert max(report.blank, report.shuffled) < 0.6
    grey = Image.new("RGB", (224, 224), (127, 127, 127))
    habit = system.answer_question(grey, COLOR, "blip2_opt")
    blind = [answered(grey, COLOR, [str(habit)], f"grey {index}") for index in range(4)]
    unmoved = system.evaluate("blip2_opt", examples=blind, ablations=True)
    assert (unmoved.accuracy.value, unmoved.blank, unmoved.shuffled) == (1.0, 1.0, None), "there is no other image"


def test_unreadable_images_count_as_wrong_and_keep_their_reason(system: VQASystem, scenes: list[Scene]) -> None:
    examples = [answered(s.image, COLOR, [s.background], f"scene {s.seed}") for s in scenes[:4]]
    examples.append(Example("gone.png", "red", "broken", question=COLOR, answers=("red",)))
    report = system.evaluate("vilt", examples=examples)
    assert report.records[4].score == 0.0
    assert "gone.png" in report.records[4].error
    assert not any(record.error for record in report.records[:4])


def test_only_the_same_questions_can_be_compared(system: VQASystem, scenes: list[Scene]) -> None:
    examples = [answered(s.image, COLOR, [s.background], f"scene {s.seed}") for s in scenes]
    one, two = (system.evaluate(model, examples=examples) for model in ("blip2_opt", "vilt"))
    difference = compare_reports(one, two)
    assert difference.value == pytest.approx(two.accuracy.value - one.accuracy.value)
    with pytest.raises(ValueError, match="Only reports on the same questions"):
        compare_reports(one, system.evaluate("vilt", examples=examples[:5]))


def test_the_page_stands_alone_and_escapes(system: VQASystem, scenes: list[Scene], tmp_path: Path) -> None:
    examples = [
        answered(s.image, f"{COLOR} <script>alert(1)</script>", [s.background], f"scene {s.seed}", "color")
        for s in scenes
    ]
    reports = [system.evaluate("blip2_opt", examples=examples, ablations=True) for _ in range(2)]
    images = {example.name: example.open_image() for example in examples}
    path = write_vqa_page(reports, images, tmp_path / "deep" / "report.html", title="a <b> title", differences=["+1"])
    text = path.read_text()
    assert text.count("data:image/png;base64,") == 13
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "a &lt;b&gt; title" in text
    assert "Does the image matter?" in text


def test_benchmark_rows(system: VQASystem, scenes: list[Scene], splits: DataSplits) -> None:
    system.create_vqa_adapter("vilt", "skill", "skill", data=splits, config=FEW, progress=False)
    rows = system.benchmark_models(
        [scene.image for scene in scenes],
        [COLOR] * 12,
        answers=[scene.background for scene in scenes],
        kinds=["color"] * 12,
        alone=3,
    )
    assert [(row.model, row.adapter) for row in rows] == [
        ("blip2-opt-mini", None),
        ("blip2-flan-mini", None),
        ("instructblip-mini", None),
        ("vilt-mini", None),
        ("vilt-mini", "skill"),
    ]
    for row in rows:
        assert 0 < row.latency_p50_s <= row.latency_p95_s
        assert row.tokens_per_s > 0
        assert row.peak_bytes > 10**8
        assert row.by_kind["color"] == pytest.approx(row.accuracy)
    assert system.benchmark_models([scenes[0].image], [COLOR], models=["vilt"], alone=1)[0].accuracy is None
    with pytest.raises(ValueError, match="equally many"):
        system.benchmark_models([scenes[0].image], [COLOR, COLOR])


# --- memory ---------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_base_leaves(tmp_path: Path, scenes: list[Scene]) -> None:
    one = VQASystem("mini", store=tmp_path / "store")
    size = {key: one.workspace.bases.needed_bytes(one.entry(key)) or 0 for key in ("blip2_opt", "blip2_flan", "vilt")}
    system = VQASystem("mini", store=tmp_path / "store", memory_budget_bytes=size["blip2_opt"] + size["blip2_flan"])
    for model in ("blip2_opt", "blip2_flan", "blip2_opt", "vilt"):
        system.answer_question(scenes[0].image, COLOR, model)
    assert system.loaded == ["blip2-opt-mini", "vilt-mini"]
    assert system.answer_question(scenes[0].image, COLOR, "blip2_flan") == scenes[0].background
    assert system.loaded == ["vilt-mini", "blip2-flan-mini"]


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch) -> None:
    small = VQASystem("mini", store=tmp_path / "store", memory_budget_bytes=1000)
    with pytest.raises(LoraxError, match=r"needs about 0\.0 GB on the budget"):
        small.base("vilt")
    from lorax_vlm.models import loading

    real = loading.probe_hardware()
    monkeypatch.setattr(loading, "probe_hardware", lambda: dataclasses.replace(real, free_ram_bytes=9_100_000_000))
    hub = VQASystem(store=tmp_path / "store", device="cpu", dtype="bfloat16")
    with pytest.raises(
        LoraxError, match=r"needs about 16\.5 GB on cpu, 9\.1 GB are free.*vilt-b32-finetuned-vqa, which needs 0"
    ) as error:
        hub.base("instructblip")
    assert "Nothing was loaded" in str(error.value)
