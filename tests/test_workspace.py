"""What is composed is what the classes say: one store, one door, one measure."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import AdapterExists, AdapterNotFound, DataError, ImageError, PromptError, UsageError
from lorax_vlm.exchange.moving import transfer
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.skills import Skill, answer, caption, instruct
from lorax_vlm.training import students
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.progress import Sample
from lorax_vlm.vqa import VQASystem
from lorax_vlm.workspace import Workspace
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.workspaces_for_tests import shared_workspace

OPT = "blip2-opt-mini"
FEW = TrainConfig(max_steps=6, batch_size=8, eval_every=3, learning_rate=5e-3, patience=None)


@pytest.fixture
def workspace(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> Iterator[Workspace]:
    with shared_workspace(load_shared, tmp_path / "store") as workspace:
        yield workspace


def train(workspace: Workspace, name: str, skill: Any, base: str = "blip2_opt"):
    splits = skill_splits(skill, 24, 8)
    options: dict[str, Any] = {"data": splits, "recipe": "light", "config": FEW, "progress": False}
    return workspace.train(name, skill, base=base, **options)


def test_an_adapter_is_trained_asked_and_measured_by_what_it_is_for(workspace: Workspace, scenes: list[Scene]) -> None:
    stored = train(workspace, "short", caption("concise"))
    assert (stored.name, stored.manifest.skill) == ("short", caption("concise"))
    said = workspace.ask(scenes[0].image, adapter="short")
    captions = BLIP2CaptioningSystem(OPT, workspace=workspace)
    assert said == captions.caption_image(scenes[0].image, "short")
    assert (said.adapter, said.base) == ("short", OPT)
    found = workspace.evaluate("short", count=30)
    base, _, own = captions.evaluate_adapters(["short"], count=30)
    assert (found.base.style, found.adapter.style) == ("concise", "concise")  # type: ignore[union-attr]
    assert found.adapter.in_style_and_true == own.in_style_and_true  # type: ignore[union-attr]
    assert base.adapter is None
    assert found.difference.value == pytest.approx(
        found.adapter.in_style_and_true - found.base.in_style_and_true  # type: ignore[union-attr]
    )


def test_what_is_created_twice_is_made_once(workspace: Workspace) -> None:
    wanted: dict[str, Any] = {"data": skill_splits(caption("concise"), 24, 8), "config": FEW, "progress": False}
    made = workspace.create("short", caption("concise"), base=OPT, recipe="light", **wanted)
    assert made.manifest.trained
    again = workspace.create("short", caption("concise"), base=OPT, recipe="light", **wanted)
    assert (again.version, again.digest) == (made.version, made.digest)
    with pytest.raises(AdapterExists):
        workspace.create("short", caption("concise"), base=OPT, recipe="medium", **wanted)
    other = workspace.create("short", caption("concise"), base=OPT, recipe="medium", replace=True, **wanted)
    assert other.version == made.version + 1
    system = BLIP2CaptioningSystem(OPT, workspace=workspace)
    with pytest.raises(UsageError, match="Unknown option 'recipe'"):
        system.create_captioning_adapter("short", "concise", recipe="light")  # type: ignore[call-arg]


class Samples:
    """Keeps what it is told that adapters say."""

    def __init__(self) -> None:
        self.told: dict[tuple[str, int], Sequence[Sample]] = {}

    def started(self, steps: Mapping[str, int], done: int) -> None: ...

    def stepped(self, step: int, losses: Mapping[str, float]) -> None: ...

    def validated(self, step: int, losses: Mapping[str, float]) -> None: ...

    def sampled(self, step: int, name: str, samples: Sequence[Sample]) -> None:
        self.told[name, step] = samples

    def stopped(self, name: str, step: int) -> None: ...

    def finished(self) -> None: ...


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("base", "skill"), [(OPT, caption("concise")), ("vilt-mini", answer("color"))])
def test_samples_are_what_is_stored_says_and_change_nothing(
    workspace: Workspace, base: str, skill: Skill, together: bool
) -> None:
    splits = skill_splits(skill, 24, 8)
    told = Samples()
    for name, samples in (("silent", 0), ("telling", 3)):
        config = dataclasses.replace(FEW, samples=samples)
        wanted: dict[str, Any] = {"data": splits, "recipe": "light", "config": config}
        orders = [workspace.workshop(base).order(name, skill, **wanted)]
        if together:
            shorter: dict[str, Any] = wanted | {"config": dataclasses.replace(config, max_steps=4)}  # between two
            orders.append(workspace.workshop(base).order(f"{name}.too", skill, **shorter))
        workspace.train_orders(base, orders, progress=told)
    first, last = ("telling", 3), ("telling", 6)
    others = [("telling.too", 3), ("telling.too", 4)]
    assert list(told.told) == ([first, *others, last] if together else [first, last])
    assert workspace.store.read_bytes("silent")[1].data == workspace.store.read_bytes("telling")[1].data
    shown = told.told["telling", workspace.stored("telling").manifest.training["best_step"]]
    asked = splits.validation[:3]
    assert [(sample.example, sample.expected) for sample in shown] == [(e.name, e.target) for e in asked]
    said = [workspace.ask(e.open_image(), e.question or None, adapter="telling") for e in asked]
    assert [sample.said for sample in shown] == said
    assert not any(sample.error for sample in shown)


def test_samples_are_asked_by_the_prompts_that_are_learnt(workspace: Workspace, scenes: list[Scene]) -> None:
    """Examples may bring prompts of their own, and no question: ViLT could not be asked for a caption."""
    rows = [
        Example(scene.image, "red", f"{n}", prompt="what color is it?", answers=("red",))
        for n, scene in enumerate(scenes)
    ]
    told, config = Samples(), dataclasses.replace(FEW, samples=2)
    data = DataSplits(rows[:8], rows[8:12], "own prompts")
    workspace.train("asked", answer("color"), base="vilt", data=data, config=config, progress=told)
    with workspace.bases.use("vilt") as engine:
        labels = set(engine.base.family.labels)
    said = [sample.said for samples in told.told.values() for sample in samples]
    assert len(said) == 4
    assert set(said) <= labels


def test_a_run_goes_on_when_nothing_can_be_sampled(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(students, "TemporaryDirectory", full)
    told, config = Samples(), dataclasses.replace(FEW, samples=2)
    made = workspace.train("mine", caption("concise"), base=OPT, config=config, progress=told)
    assert made.manifest.trained
    assert not told.told
    assert "'mine' cannot be asked while it is trained: [Errno 28] No space left on device" in caplog.text


def test_answers_too(workspace: Workspace, scenes: list[Scene]) -> None:
    train(workspace, f"{OPT}.count", answer("counting"))
    found = workspace.evaluate("count", count=40)
    system = VQASystem(workspace=workspace)
    examples = system.test_questions("counting", 40)
    for report, name in ((found.base, None), (found.adapter, "count")):
        same = system.evaluate("blip2_opt", name, examples=examples)
        assert [r.answer for r in report.records] == [r.answer for r in same.records]  # type: ignore[union-attr]
    question = "How many shapes are there?"
    both = workspace.compare(scenes[0].image, [None, "count"], question, base="blip2_opt")
    assert list(both) == ["base", "count"]
    assert both["count"] == system.answer_question(scenes[0].image, question, "blip2_opt", "count")


def test_what_a_base_cannot_learn_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    def load(_: object) -> LoadedModel:
        pytest.fail("a base was loaded")

    workspace = Workspace("mini", store=tmp_path, load=load)
    for skill in (caption("plain"), instruct()):
        with pytest.raises(UsageError, match="only chooses among fixed answers"):
            workspace.train("mine", skill, base="vilt", data=skill_splits(skill, 8, 4))
        with pytest.raises(UsageError, match="only chooses among fixed answers"):
            workspace.workshop("vilt").make("mine", skill)


def test_a_misspelt_word_is_refused_before_a_base_is_loaded(tmp_path: Path) -> None:
    """A keyword that no code reads would change nothing, and nobody would know."""

    def load(_: object) -> LoadedModel:
        pytest.fail("a base was loaded")

    workspace = Workspace("mini", store=tmp_path, load=load)
    captions, questions = BLIP2CaptioningSystem(OPT, workspace=workspace), VQASystem(workspace=workspace)
    between, skill = MultiModalLoRAExchange(workspace=workspace), caption("plain")
    calls: list[Callable[[], object]] = [
        lambda: workspace.train("mine", skill, base="blip2_opt", recipie="strong"),  # type: ignore[call-arg]
        lambda: workspace.workshop(OPT).order("mine", skill, recipie="strong"),  # type: ignore[call-arg]
        lambda: workspace.workshop(OPT).make("mine", skill, recipie="strong"),  # type: ignore[call-arg]
        lambda: captions.train_adapter("mine", "plain", recipie="strong"),  # type: ignore[call-arg]
        lambda: questions.train_adapter("blip2_opt", "mine", "counting", recipie="x"),  # type: ignore[call-arg]
        lambda: transfer(workspace.bases, "mine", "blip2_flan", recipie="strong"),  # type: ignore[call-arg]
        lambda: between.exchange_adapters("a", "b", recipie="strong"),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(UsageError, match="Unknown option 'recipie'"):
            call()
    for ask in (
        lambda: workspace.ask("a.png", base="blip2_opt", max_tokens=3),
        lambda: captions.caption_image("a.png", question="Why?"),
        lambda: captions.caption_images(["a.png"], question="Why?"),
        lambda: questions.answer_questions(["a.png"], ["Why?"], "blip2_opt", beams=3),
    ):
        with pytest.raises(UsageError, match="Unknown decoding settings"):
            ask()
    with pytest.raises(UsageError, match="progress must be True, False, or a Progress"):
        workspace.train("mine", skill, base="blip2_opt", progress=0)  # type: ignore[arg-type]


def test_an_adapter_that_cannot_be_used_is_no_error_of_a_row(workspace: Workspace, scenes: list[Scene]) -> None:
    """With ``return_errors``, a bad row has its error in its place; an unknown adapter would fail every row."""
    questions, captions = VQASystem(workspace=workspace), BLIP2CaptioningSystem(OPT, workspace=workspace)
    image, question = scenes[0].image, "How many shapes are there?"
    for _ in range(2):  # before the base is in memory, and when it is
        with pytest.raises(AdapterNotFound):
            questions.answer_questions([image], [question], OPT, ["nobody"], return_errors=True)
        with pytest.raises(AdapterNotFound):
            captions.caption_images([image], "nobody", return_errors=True)
        good, bad = questions.answer_questions([image, "gone.png"], [question] * 2, OPT, return_errors=True)
        assert isinstance(bad, ImageError)
        assert good == questions.answer_question(image, question, OPT)


def test_who_only_chooses_writes_no_caption_whoever_asks(workspace: Workspace, scenes: list[Scene]) -> None:
    with pytest.raises(UsageError, match="only chooses among fixed answers"):
        workspace.ask(scenes[0].image, base="vilt")
    with pytest.raises(UsageError, match="only chooses among fixed answers"):
        workspace.compare(scenes[0].image, [None], base="vilt")


def test_no_base_is_loaded_for_what_cannot_be_measured(store: AdapterStore, mini: LoadedModel, tmp_path: Path) -> None:
    def load(_: object) -> LoadedModel:
        pytest.fail("a base was loaded")

    hub = "Salesforce/blip2-opt-2.7b"
    folder = write_random_adapter(mini, tmp_path / "made", seed=1, scale=0.5)
    for name, skill in (("short", caption("concise")), ("count", answer("counting"))):
        prompt = "" if skill.mode == "caption" else "Question: {question} Answer:"
        manifest = write_manifest(mini, folder, skill=skill, prompt=prompt)
        assert manifest.base is not None
        manifest = dataclasses.replace(manifest, base=dataclasses.replace(manifest.base, name=hub))
        store.add(f"blip2-opt-2.7b.{name}", folder, manifest)
    workspace = Workspace(store=store.root, load=load)
    with pytest.raises(UsageError, match="no built-in test scenes"):
        BLIP2CaptioningSystem(hub, workspace=workspace).evaluate_adapters(["short"])
    with pytest.raises(UsageError, match="no built-in test examples"):
        MultiModalLoRAExchange(workspace=workspace).evaluate_adapter("blip2-opt-2.7b.count")
    for name, refused in (("short", "no built-in test scenes"), ("count", "no built-in test questions")):
        with pytest.raises(UsageError, match=refused):
            workspace.evaluate(name)
    with pytest.raises(PromptError, match="it answers questions"):
        BLIP2CaptioningSystem(hub, workspace=workspace).evaluate_adapters(
            ["blip2-opt-2.7b.count"], data=skill_splits(caption("plain"), 8, 4)
        )
    for name, skill, refused in (
        ("short", answer("color"), "holds questions"),
        ("count", caption("plain"), "holds captions"),
    ):
        with pytest.raises(DataError, match=refused):
            workspace.evaluate(name, data=skill_splits(skill, 8, 4))


def test_what_mixes_captions_and_answers_is_said(
    workspace: Workspace, scenes: list[Scene], mini: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_random_adapter(mini, tmp_path / "made", seed=1, scale=0.5)
    for name, skill, prompt in (("short", caption("concise"), ""), ("count", answer("counting"), "Q: {question} A:")):
        workspace.store.add(name, folder, write_manifest(mini, folder, name=name, skill=skill, prompt=prompt))
    image = scenes[0].image
    for name, said in (("count", 0), ("short", 1), ("short", 1)):
        workspace.ask(image, "What is it?", adapter=name)
        assert caplog.text.count("was made to write captions, concise, and is asked a question") == said
    other = write_random_adapter(mini, tmp_path / "other", seed=2, scale=0.5)
    manifest = write_manifest(mini, other, name="more", skill=answer("color"), prompt="Q: {question} A:")
    workspace.store.add("more", other, manifest)
    workspace.merge(["count", "more"], "answers")
    assert "some caption and some answer" not in caplog.text
    workspace.merge(["short", "more"], "both")
    assert "Of short, more some caption and some answer questions" in caplog.text
    with pytest.raises(UsageError, match="A list of adapters is needed, got 'short'"):
        workspace.compare(image, "short", base=OPT)
    with pytest.raises(UsageError, match="is a skill of lorax_vlm"):
        workspace.train("x", "concise", base=OPT)  # type: ignore[arg-type]


def test_options_belong_to_one_workspace(workspace: Workspace, tmp_path: Path) -> None:
    for make in (BLIP2CaptioningSystem, VQASystem, MultiModalLoRAExchange):
        with pytest.raises(UsageError, match="store: the workspace that is given has its own"):
            make(workspace=workspace, store=tmp_path)  # type: ignore[operator]
        with pytest.raises(UsageError, match="Unknown option 'stroe'"):
            make(stroe=tmp_path)  # type: ignore[operator]
    assert VQASystem(workspace=workspace).workspace is MultiModalLoRAExchange(workspace=workspace).workspace
