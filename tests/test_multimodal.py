"""The exchange system: the calls of the specification, on the miniatures."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorax_vlm import MultiModalLoRAExchange, make_scene
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.cli.main import main
from lorax_vlm.data.examples import DataSplits
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.skills import skill_examples, skill_splits
from lorax_vlm.errors import (
    AdapterExists,
    AdapterNotFound,
    AmbiguousAdapter,
    DamagedAdapter,
    DataError,
    ExampleError,
    IncompatibleAdapter,
    LoraxError,
    TransferRefused,
    UsageError,
)
from lorax_vlm.evaluation.results import SeenShare, VQAReport
from lorax_vlm.models.catalog import MINIATURE_KEYS
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.skills import EXCHANGE_TASKS, answer
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.types import GenerationSettings
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.workspaces_for_tests import shared_workspace

FEW = TrainConfig(max_steps=3, batch_size=4, eval_every=3, learning_rate=1e-3, patience=None)


@pytest.fixture
def system(load_shared: Callable[[str], LoadedModel], tmp_path: Path) -> Iterator[MultiModalLoRAExchange]:
    with shared_workspace(load_shared, tmp_path / "store") as workspace:
        yield MultiModalLoRAExchange(workspace=workspace)


def few(task: str) -> DataSplits:
    skill = EXCHANGE_TASKS[task]
    return DataSplits(skill_examples(skill, "train", 12), skill_examples(skill, "validation", 4), f"a few of {task}")


def make(
    system: MultiModalLoRAExchange, model: str, name: str, task: str = "captioning", complexity: str | Recipe = "light"
) -> str:
    return system.create_adapter(model, name, task, complexity, data=few(task), config=FEW, progress=False)


def test_a_short_name_will_do_everywhere_and_an_unknown_one_is_no_broken_adapter(
    system: MultiModalLoRAExchange,
) -> None:
    key = make(system, "blip2_opt", "solo")
    assert system.compatibility_matrix(["solo"], ["blip2_opt"]).rows() == [(key, "exact")]
    for call in (system.remove_adapter, lambda name: system.compatibility_matrix([name])):
        with pytest.raises(AdapterNotFound):
            call("nobody")
    system.remove_adapter("solo")
    assert key not in system.store


def test_the_base_that_is_named_says_which_adapter_is_meant(
    system: MultiModalLoRAExchange, scenes: list[Scene]
) -> None:
    keys = {model: make(system, model, "mine", complexity="medium") for model in ("blip2_opt", "blip2_flan")}
    with pytest.raises(AmbiguousAdapter):
        system.generate_with_adapter("mine", scenes[0].image)
    for model, key in keys.items():
        said = system.generate_with_adapter("mine", scenes[0].image, model=model)
        assert said == system.generate_with_adapter(key, scenes[0].image)
        report = system.evaluate_adapter("mine", model=model, count=4, include_seen=True)
        assert report.base == system.entry(model).name


def test_the_calls_of_the_specification(system: MultiModalLoRAExchange, tmp_path: Path, scenes: list[Scene]) -> None:
    key = make(system, "blip2_opt", "image_caption")
    assert key == "blip2-opt-mini.image_caption"
    assert [a.name for a in system.list_adapters()] == [key]
    text = system.generate_with_adapter(key, scenes[0].image)
    assert text.adapter == key
    both = system.generate_with_adapter(key, scenes[0].image, compare=True)
    assert list(both) == ["base", key]
    assert both[key] == text
    report = system.evaluate_adapter(key, count=4)
    assert (report.count, report.task) == (4, "captions, detailed")
    folder = system.save_adapter(key, tmp_path / "saved")
    bundle = system.save_adapter(key, tmp_path / "saved.lorax")
    system.remove_adapter(key)
    with pytest.raises(AdapterNotFound):
        system.generate_with_adapter(key, scenes[0].image)
    assert system.load_adapter(folder) == key
    assert system.load_adapter(bundle, "again") == "again"
    assert system.generate_with_adapter("again", scenes[0].image) == text
    assert system.check_adapter(key, "blip2_opt").verdict == "exact"
    assert system.check_adapter(key, "blip2_flan").verdict == "refused"


@pytest.mark.parametrize("task", EXCHANGE_TASKS)
@pytest.mark.parametrize("model", list(MINIATURE_KEYS))
def test_every_task_on_every_model(system: MultiModalLoRAExchange, model: str, task: str, scenes: list[Scene]) -> None:
    if model == "vilt" and task in ("captioning", "instruction_following"):
        with pytest.raises(ValueError, match=r"cannot do .* It can do: vqa, complex_reasoning, general"):
            make(system, model, "it", task)
        return
    key = make(system, model, "it", task)
    stored = system.store.get(key)
    skill = EXCHANGE_TASKS[task]
    assert stored.manifest.skill == skill
    question = "" if task == "captioning" else skill_examples(skill, "test", 1)[0].question
    assert isinstance(system.generate_with_adapter(key, scenes[0].image, question), str)
    if question:
        with pytest.raises(ExampleError, match="pass one"):
            system.generate_with_adapter(key, scenes[0].image)


@pytest.mark.parametrize("complexity", ["light", "medium", "heavy"])
def test_complexities(system: MultiModalLoRAExchange, complexity: str) -> None:
    stored = system.store.get(make(system, "blip2_opt", "it", "vqa", complexity))
    assert stored.manifest.rank == {"light": 4, "medium": 8, "heavy": 16}[complexity]
    assert system.store.get("blip2-opt-mini.it").manifest.recipe == complexity


def test_wrong_words_are_errors_and_store_nothing(system: MultiModalLoRAExchange) -> None:
    for wrong in (
        ("blip2_opt", "a", "singing", "light"),
        ("blip2_opt", "a", "vqa", "enormous"),
        ("gpt", "a", "vqa", "light"),
    ):
        with pytest.raises((ValueError, LoraxError)):
            system.create_adapter(*wrong)
    make(system, "blip2_opt", "a", "vqa")
    with pytest.raises(AdapterExists):
        make(system, "blip2_opt", "a", "general")
    assert len(system.list_adapters()) == 1


def test_the_matrix_and_the_page(system: MultiModalLoRAExchange, tmp_path: Path) -> None:
    words = make(system, "blip2_opt", "words")
    eyes = make(system, "blip2_opt", "eyes", complexity="portable")
    matrix = system.compatibility_matrix()
    assert matrix.bases == ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini")
    assert {name: row for name, *row in matrix.rows()} == {
        words: ["exact", "L3", "L3", "L5"],
        eyes: ["exact", "L1", "L1", "L5"],
    }
    path = system.store.root / "names" / f"{words}.json"
    path.write_text("nonsense")
    broken = system.compatibility_matrix()
    assert (list(broken.broken), broken.adapters) == ([words], (eyes,))
    page = system.write_report(tmp_path / "page.html", []).read_text(encoding="utf-8")
    assert "data:image/png" in page
    assert "None." in page


def test_a_plain_peft_directory_is_taken_in_as_unverified(
    system: MultiModalLoRAExchange, mini: LoadedModel, tmp_path: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "users", "light")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DamagedAdapter, match=r"exchange\.json does not exist"):
        system.load_adapter(folder)
    key = system.load_adapter(folder, model="blip2_opt")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "untouched"
    assert system.check_adapter(key, "blip2_opt").verdict == "unverified"
    with pytest.raises(IncompatibleAdapter):
        system.load_adapter(folder, "flan", model="blip2_flan")
    with pytest.raises(LoraxError, match="does not say which base"):
        system.generate_with_adapter(key, make_scene(1).image)
    image = make_scene(1).image
    said = system.generate_with_adapter(key, image, model="blip2_opt", compare=True)
    assert said[key] == system.workspace.ask(image, adapter=key, base="blip2_opt")
    assert (said[key].adapter, said["base"].adapter) == (key, None)
    with pytest.raises(LoraxError, match="does not say which base"):
        system.workspace.evaluate(key, count=20)
    splits = skill_splits(answer("counting"), 1, 20)
    examples = list(splits.select("all"))
    report = system.evaluate_adapter(key, examples=examples, model="blip2_opt")
    found = system.workspace.evaluate(key, data=splits, base="blip2_opt")
    assert isinstance(found.adapter, VQAReport)
    assert (report.count, report.after.value) == (24, found.adapter.accuracy.value)
    with pytest.raises(IncompatibleAdapter):
        system.workspace.evaluate(key, data=splits, base="blip2_flan")


def test_a_short_name_will_do_where_one_adapter_is_meant(
    system: MultiModalLoRAExchange, load_shared: Callable[[str], LoadedModel], tmp_path: Path
) -> None:
    for base, names in (("blip2-opt-mini", ("eyes", "both")), ("blip2-flan-mini", ("both",))):
        for name in names:
            folder = write_random_adapter(load_shared(base), tmp_path / base / name, "portable")
            system.store.add(f"{base}.{name}", folder, write_manifest(load_shared(base), folder))
    full = "blip2-opt-mini.eyes"
    assert system.plan_transfer("eyes", "blip2_flan") == system.plan_transfer(full, "blip2_flan")
    assert system.check_adapter("eyes", "blip2_opt") == system.check_adapter(full, "blip2_opt")
    image = make_scene(1).image
    assert system.generate_with_adapter("eyes", image) == system.generate_with_adapter(full, image)
    assert system.save_adapter("eyes", tmp_path / "eyes").is_dir()
    with pytest.raises(AmbiguousAdapter):
        system.plan_transfer("both", "instructblip")


def test_a_captioner_measured_with_questions_answers_them_as_questions(
    system: MultiModalLoRAExchange, mini: LoadedModel, tmp_path: Path
) -> None:
    folder = write_random_adapter(mini, tmp_path / "wordy", "light")
    long = GenerationSettings(min_new_tokens=8, max_new_tokens=30)
    system.store.add("blip2-opt-mini.wordy", folder, write_manifest(mini, folder, generation=long))
    examples = skill_examples(answer("counting"), "test", 20)
    report = system.evaluate_adapter("blip2-opt-mini.wordy", examples=examples)
    said = [
        system.generate_with_adapter("blip2-opt-mini.wordy", example.open_image(), example.question)
        for example in examples
    ]
    right = sum(text == example.target for text, example in zip(said, examples, strict=True))
    assert right > 0
    assert report.after.value == right / 20


# --- what cannot be moved -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["captioning", "instruction_following"])
def test_what_writes_is_not_moved_to_what_only_chooses(
    system: MultiModalLoRAExchange, load_shared: Callable[[str], LoadedModel], tmp_path: Path, task: str
) -> None:
    opt, vilt = load_shared("blip2-opt-mini"), load_shared("vilt-mini")
    for base, name, own in ((opt, "writes", task), (vilt, "chooses", "vqa")):
        prompt = "" if own == "captioning" else base.entry.question_template
        folder = write_random_adapter(base, tmp_path / name)
        system.store.add(
            f"{base.name}.{name}", folder, write_manifest(base, folder, skill=EXCHANGE_TASKS[own], prompt=prompt)
        )
    names, before = ("blip2-opt-mini.writes", "vilt-mini.chooses"), system.store.names()
    reason = "only chooses among fixed answers"
    plan = system.plan_transfer(names[0], "vilt")
    assert plan.refused
    assert any(reason in line for line in plan.reasons)
    for steps in (None, 3):
        with pytest.raises(TransferRefused, match=reason):
            system.cross_model_adapter_transfer(names[0], "vilt", steps=steps, progress=False)
    for pair in (names, names[::-1]):
        with pytest.raises(TransferRefused, match=reason):
            system.exchange_adapters(*pair, steps=3, progress=False)
    assert system.store.names() == before


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3", True])
def test_odd_numbers_of_steps_are_refused(system: MultiModalLoRAExchange, mini, tmp_path: Path, steps: object) -> None:
    folder = write_random_adapter(mini, tmp_path / "mine")
    system.store.add("mine", folder, write_manifest(mini, folder))
    with pytest.raises(UsageError, match="max_steps"):
        system.cross_model_adapter_transfer("mine", "blip2_flan", steps=steps, progress=False)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_steps"):
        system.default_config("blip2_opt", "captioning", steps)  # type: ignore[arg-type]


def test_images_that_it_was_trained_on_are_left_out(system: MultiModalLoRAExchange) -> None:
    key = make(system, "blip2_opt", "mine")
    others = skill_examples(EXCHANGE_TASKS["captioning"], "test", 30)
    trained = list(few("captioning").train)
    report = system.evaluate_adapter(key, examples=[*others, *trained])
    assert report.count == 30
    assert report.seen == SeenShare(key, 42, 12, left_out=True)
    assert system.evaluate_adapter(key, examples=[*others, *trained], include_seen=True).count == 42
    with pytest.raises(UsageError, match="All 12 images were trained on"):
        system.evaluate_adapter(key, examples=trained)


def test_data_without_a_validation_part_are_refused(system: MultiModalLoRAExchange) -> None:
    one_sided = DataSplits(skill_examples(EXCHANGE_TASKS["vqa"], "train", 8), [], "one side")
    with pytest.raises(DataError, match="validat"):
        system.create_adapter("blip2_opt", "mine", "vqa", data=one_sided, config=FEW, progress=False)


def test_a_plan_is_the_same_however_it_is_asked_for(
    system: MultiModalLoRAExchange, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make(system, "blip2_opt", "mine")
    for images in (None, 0, 100):
        planned = system.plan_transfer(key, "blip2_flan", images=images)
        words = ["exchange", "plan", key, "--to", "blip2-flan-mini", "--store", str(system.store.root), "--json"]
        words += [] if images is None else ["--images", str(images)]
        monkeypatch.setattr(sys, "argv", ["lorax-vlm", *words])
        with pytest.raises(SystemExit):
            main()
        assert json.loads(capsys.readouterr().out)["label"] == planned.label
        assert planned.refused == (images == 0)
