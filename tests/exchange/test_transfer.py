"""Moving adapters: what is copied is the source's own, what is kept beats its controls, and nothing else is stored."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lorax_vlm.adapters.factors import read_updates
from lorax_vlm.adapters.manifest import FileRecord, Manifest
from lorax_vlm.adapters.recipe import Recipe
from lorax_vlm.adapters.records import NameRecords
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages, write_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.asking import ask_for
from lorax_vlm.data.examples import Example
from lorax_vlm.data.world.examples import scene_captions, scene_questions
from lorax_vlm.data.world.skills import without_targets
from lorax_vlm.errors import AdapterExists, PathError, TransferRefused, UsageError
from lorax_vlm.evaluation.results import SeenShare
from lorax_vlm.evaluation.seen import KNOWN_BY, Identity
from lorax_vlm.exchange import transfer as transfer_module
from lorax_vlm.exchange.candidates import copies, random_like, shuffled_layers
from lorax_vlm.exchange.direction import Direction, TransferOptions
from lorax_vlm.exchange.merge import merge_adapters
from lorax_vlm.exchange.moving import Wishes, direction
from lorax_vlm.exchange.swap import exchange_adapters
from lorax_vlm.exchange.teacher import TeacherAnswer, answer, make_lesson
from lorax_vlm.exchange.transfer import transfer_adapter
from lorax_vlm.exchange.transfer_data import TransferData, read_transfer_data
from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.skills import answer as answers
from lorax_vlm.skills import caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.workshop.intake import take_in
from lorax_vlm.workshop.making import AdapterWorkshop
from lorax_vlm.workshop.orders import AdapterKind, AdapterOrder
from tests.adapters_for_tests import write_manifest, write_random_adapter
from tests.data_for_tests import captioned, numbered, write_pictures, write_rows

Load = Callable[[str], LoadedModel]
QUICK = TrainConfig(max_steps=25, batch_size=16, learning_rate=8e-3, eval_every=25, patience=None)


OPT, FLAN = "blip2-opt-mini", "blip2-flan-mini"


@pytest.fixture
def bases(load_shared: Load, store: AdapterStore) -> Iterator[Bases]:
    bases = Bases(
        {}, store, load=lambda entry: load_shared(entry.name) if entry.miniature else load_model(entry.source)
    )
    yield bases
    bases.clear()


def options(tmp_path: Path, **changes: object) -> TransferOptions:
    return TransferOptions(config=QUICK, run_dir=tmp_path / "transfer", progress=False, **changes)  # type: ignore[arg-type]


def add(bases: Bases, model: str, name: str, tmp_path: Path, recipe: str | Recipe, **changes: object) -> None:
    with bases.use(model) as engine:
        folder = write_random_adapter(engine.base, tmp_path / name, recipe, scale=changes.pop("scale", 1.0))  # type: ignore[arg-type]
        write_manifest(engine.base, folder, **changes)
        take_in(engine, folder)


def move(bases: Bases, name: str, source: str, target: str, new: str, data: TransferData, how: TransferOptions):
    return transfer_adapter(bases, Direction(name, source, target, new, data, how))


def agreeing(engine: BaseEngine, name: str) -> list[Example]:
    """Development examples whose right answer is, by construction, what the adapter says on its own base."""
    examples = scene_captions("plain", "validation", 32)
    said = answer(engine, name, examples, engine.entry.caption_settings.replace(max_new_tokens=6))
    return [dataclasses.replace(e, target=text) for e, text in zip(examples, said, strict=True)]


def test_what_both_bases_share_is_copied_bit_for_bit(mini: LoadedModel, store: AdapterStore, tmp_path: Path) -> None:
    """Between two bases that are equal but in name: the copy must win, and be the source's update."""
    twin = str(shutil.copytree(mini.folder, tmp_path / "twin"))
    bases = Bases({}, store, load=lambda entry: mini if entry.miniature else load_model(twin, dtype="float32"))
    add(bases, OPT, "eyes", tmp_path, "portable")
    with bases.use(OPT) as engine:
        development = agreeing(engine, "eyes")
    data = TransferData(development=development, judge=lambda e, text: float(text.startswith(e.target[:12])))
    report = move(bases, "eyes", OPT, twin, "twin.eyes", data, options(tmp_path))
    assert report.accepted, report.lines()
    assert report.chosen == "copy"
    assert report.adapter == "twin.eyes"
    mine, theirs = (read_updates(store.read_bytes(name)[1]) for name in ("eyes", "twin.eyes"))
    assert set(mine) == set(theirs)
    for site, update in mine.items():
        assert np.allclose(update.b @ update.a, theirs[site].b @ theirs[site].a, atol=1e-6)
    (parent,) = store.get("twin.eyes").manifest.lineage
    assert (parent.name, parent.manifest) == ("eyes", store.get("eyes").manifest.digest)
    (figure,) = store.get("twin.eyes").manifest.metrics
    assert figure.value == report.final.mean.value
    assert report.agreement is not None
    assert report.agreement.value > 0.5, "long captions of a random adapter: rounding changes some"
    assert all(text.startswith(e.target[:12]) for text, e in zip(report.source.texts, data.development, strict=True))
    bases.clear()
    assert not list((tmp_path / "transfer").iterdir())


def test_without_an_effect_beyond_chance_nothing_is_stored(bases: Bases, tmp_path: Path, store: AdapterStore) -> None:
    add(bases, OPT, "eyes", tmp_path, "portable", scale=0.05)  # too small to change any answer
    data = TransferData(development=scene_captions("plain", "validation", 32))
    report = move(bases, "eyes", OPT, FLAN, "flan.eyes", data, options(tmp_path))
    assert not report.accepted
    assert report.label == "refused"
    assert any("not better than target alone" in reason for reason in report.reasons)
    assert store.names() == ["eyes"]


def test_refusals_come_before_anything_is_loaded(bases: Bases, tmp_path: Path, store: AdapterStore) -> None:
    add(bases, OPT, "words", tmp_path, "light")
    refuse = partial(move, Bases({}, store, load=lambda _: pytest.fail("a base was asked for")), "words", OPT, FLAN)
    how = options(tmp_path)
    with pytest.raises(TransferRefused, match="without unlabelled images"):
        refuse("flan.words", TransferData(), how)
    with pytest.raises(TransferRefused, match="40 unlabelled images are too few to tell"):
        refuse("flan.words", TransferData(kinds("train", 40)), how)
    few = TransferData(kinds("train", 400), kinds("validation", 29))
    with pytest.raises(TransferRefused, match="29 labelled images are too few to tell"):
        refuse("flan.words", few, how)
    with pytest.raises(AdapterExists):
        refuse("words", TransferData(), how)
    assert store.names() == ["words"]


@pytest.fixture
def counting(bases: Bases) -> None:
    """An OPT adapter that was taught, quickly, to answer one question its base cannot: always with the same word."""
    kind = AdapterKind(answers("kind"), ask_for(bases.entry(OPT), answers("kind")))
    from lorax_vlm.data.examples import DataSplits

    splits = DataSplits(kinds("train", 96), kinds("validation", 16), "kinds").with_prompt(kind.ask.template)
    recipe = Recipe("small", 4, ("lm-attention",))
    AdapterWorkshop(bases, OPT).train(AdapterOrder("kind", kind, recipe, splits, QUICK), progress=False)


def kinds(split: str, count: int, start: int = 0) -> list[Example]:
    """A question that every base answers wrongly."""
    rows = scene_questions("classification", split, count, start=start)
    return [
        dataclasses.replace(e, question="What kind of picture is this?", target="scene", answers=("scene",))
        for e in rows
    ]


def test_steps_of_a_transfer_are_those_that_are_asked_for(bases: Bases, tmp_path: Path, store: AdapterStore) -> None:
    """A quarter of FLAN-T5's 600 for a style, unless somebody says how many."""
    add(bases, OPT, "words", tmp_path, "light", skill=caption("concise"), prompt="")
    data = TransferData(kinds("train", 400))
    for wishes, steps in (
        ({}, 150),
        ({"config": {"batch_size": 4}}, 150),
        ({"config": {"max_steps": 300}}, 300),
        ({"config": TrainConfig(max_steps=40, eval_every=20)}, 40),
        ({"steps": 7, "config": {"max_steps": 300}}, 7),
    ):
        wanted: Wishes = wishes  # type: ignore[assignment]
        config = direction(bases, "words", FLAN, data, wanted).options.config
        assert config.max_steps == steps
        assert config.eval_every <= steps


@pytest.mark.parametrize("target", ["blip2-flan-mini", "instructblip-mini", "vilt-mini"])
@pytest.mark.usefixtures("counting")
def test_distillation_between_families_needs_no_label(
    bases: Bases, store: AdapterStore, target: str, tmp_path: Path
) -> None:
    """Development is agreement with the source: no target of any example is read."""
    captions = scene_captions("plain", "validation", 12) if bases.entry(target).captions else []
    data = TransferData(unlabelled=without_targets(kinds("train", 96, start=5000)), off_task=captions)
    report = move(bases, "kind", OPT, target, f"{target}.kind", data, options(tmp_path))
    assert report.accepted, report.lines()
    assert report.measured_by == "agreement"
    assert report.chosen == "distilled"
    assert report.final.mean.value > 0.9
    assert (report.cost.labels, report.cost.images, report.cost.kept) == (0, 96, 86)
    assert ("cover 100.0 % of the training examples" in report.coverage) == (target == "vilt-mini")
    if captions:
        assert report.off_task is not None
        assert report.off_task[0].value > 0.8, "asked for captions, with room for them, though it answers questions"
    kept = store.get(f"{target}.kind").manifest
    assert kept.lineage[0].method == report.label
    seen, source = (store.read_bytes(name)[1].seen for name in (f"{target}.kind", "kind"))
    assert seen is not None
    assert source is not None
    assert seen.sections[: len(source.sections)] == source.sections, "what the source learnt from"
    assert all(seen.contains(example.image_digest()) for example in data.unlabelled), "and what it learnt itself"
    assert kept.training["images_known_by"] == ["drawing"]
    with bases.use(target) as engine:
        said = answer(engine, f"{target}.kind", kinds("test", 8), engine.entry.answer_settings)
    assert said == ["scene"] * 8


@pytest.mark.usefixtures("counting")
def test_a_store_that_cannot_be_written_is_found_before_any_work(tmp_path: Path, store: AdapterStore) -> None:
    never = Bases({}, store, load=lambda _: pytest.fail("a base was asked for"))
    data = TransferData(without_targets(kinds("train", 72, start=5000)))
    there = Direction("kind", OPT, FLAN, "flan.kind", data, options(tmp_path))
    (store.root / ".lock").unlink()
    (store.root / ".lock").mkdir()
    for work in (
        lambda: transfer_adapter(never, there),
        lambda: exchange_adapters(never, there, dataclasses.replace(there, new_name="flan.other")),
        lambda: merge_adapters(never, OPT, ["kind", "kind"], "twice", run_dir=tmp_path / "merge"),
    ):
        with pytest.raises(PathError, match="store"):
            work()
    assert store.names() == ["kind"]


@pytest.mark.usefixtures("counting")
def test_exchanging_is_all_or_nothing(bases: Bases, tmp_path: Path, store: AdapterStore) -> None:
    prompt = bases.entry(FLAN).question_template
    add(bases, FLAN, "noise", tmp_path, "light", scale=0.05, skill=answers("vqa"), prompt=prompt)
    unlabelled = without_targets(kinds("train", 72, start=5000))
    there = Direction("kind", OPT, FLAN, "flan.kind", TransferData(unlabelled), options(tmp_path / "there"))
    back = Direction(
        "noise",
        FLAN,
        OPT,
        "opt.noise",
        TransferData(unlabelled, kinds("validation", 32)),
        options(tmp_path / "back"),
    )
    report = exchange_adapters(bases, there, back)
    assert not report.accepted
    assert report.adapters == {}
    assert report.there.reasons == ("the other adapter of the exchange was refused",)
    assert report.back.reasons
    assert store.names() == ["kind", "noise"]


@pytest.fixture
def ways(counting: None, tmp_path: Path) -> tuple[Direction, Direction]:
    """Twice the same, which is worth it both times."""
    unlabelled = without_targets(kinds("train", 72, start=5000))
    there = Direction("kind", OPT, FLAN, "flan.kind", TransferData(unlabelled), options(tmp_path / "there"))
    return there, dataclasses.replace(there, new_name="flan.other", options=options(tmp_path / "back"))


def test_both_are_stored_in_one_step_or_none(
    bases: Bases,
    ways: tuple[Direction, Direction],
    store: AdapterStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process dies at its first write of a record, at its second, ...: what is there is neither, or both."""
    replace, died = NameRecords._replace, []

    def dying(self: NameRecords, file: str, text: str) -> None:
        if len(died) == 0:
            died.append(file)
            raise KeyboardInterrupt
        replace(self, file, text)

    monkeypatch.setattr(NameRecords, "_replace", dying)
    with pytest.raises(KeyboardInterrupt):
        exchange_adapters(bases, *ways)
    assert died == [".pending"], "both records are one file first"
    assert AdapterStore(store.root).names() == ["kind"]
    assert not list((tmp_path / "there").glob("*/*")), "its folder is gone"

    def dying_later(self: NameRecords, file: str, text: str) -> None:
        if file == "flan.other.json":
            raise KeyboardInterrupt
        replace(self, file, text)

    monkeypatch.setattr(NameRecords, "_replace", dying_later)
    with pytest.raises(KeyboardInterrupt):
        exchange_adapters(bases, *ways)
    monkeypatch.undo()
    found = AdapterStore(store.root)
    assert found.names() == ["flan.kind", "flan.other", "kind"]
    assert found.get("flan.other").manifest.lineage[0].name == "kind"
    assert found.verify().problems == ()


def test_one_that_cannot_be_stored_keeps_the_other_out(
    bases: Bases, ways: tuple[Direction, Direction], store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = transfer_module._addition
    made: list[str] = []

    def failing(engine, prepared, new_name: str, replace: bool):
        made.append(new_name)
        if len(made) == 2:
            raise PathError("/full", "No space left on device")
        return make(engine, prepared, new_name, replace)

    monkeypatch.setattr(transfer_module, "_addition", failing)
    with pytest.raises(PathError):
        exchange_adapters(bases, *ways)
    assert made == ["flan.kind", "flan.other"]
    assert store.names() == ["kind"]
    there, back = ways
    with pytest.raises(UsageError, match="different names"):
        exchange_adapters(bases, there, dataclasses.replace(back, new_name=there.new_name))


# --- candidates and lessons -------------------------------------------------------------------------------------------


def test_controls_keep_the_spectrum_and_lose_the_rest(mini: LoadedModel, tmp_path: Path) -> None:
    from lorax_vlm.adapters.files import read_adapter

    updates = read_updates(read_adapter(write_random_adapter(mini, tmp_path / "a"), "a"))
    alike = random_like(updates, seed=1)
    for site, update in updates.items():
        count = update.rank
        assert np.allclose(alike[site].singular_values[:count], update.singular_values[:count])
        assert abs(update.cosine(alike[site])) < 0.2
    moved = shuffled_layers(updates, seed=1)
    assert set(moved) == set(updates)
    assert all(moved[site] is not update for site, update in updates.items())
    assert {id(update) for update in moved.values()} == {id(update) for update in updates.values()}
    sized = copies(updates, list(updates)[:2], same_weights=False)
    assert list(sized) == ["copy x 0.25", "copy x 0.5", "copy x 0.75", "copy", "copy x 1.5"]
    assert list(copies(updates, list(updates), same_weights=True)) == ["copy"]


def test_a_lesson_drops_what_the_teacher_is_least_sure_of() -> None:
    examples = scene_captions("plain", "train", 40)
    answers = [TeacherAnswer(f"text {i}", i / 40) for i in range(39)] + [TeacherAnswer("  ", 1.0)]
    lesson = make_lesson(examples, answers)
    assert (lesson.asked, lesson.kept) == (40, 35), "nine tenths of the 39 that say something"
    targets = [e.target for e in (*lesson.splits.train, *lesson.splits.validation)]
    assert targets == [f"text {i}" for i in range(4, 39)]
    held_out = [len(make_lesson(examples, answers, fewest_held_out=n).splits.validation) for n in (1, 10, 30)]
    assert held_out == [4, 10, 17], "a tenth, as many as are needed, and never more than half"
    twice = [e for e in scene_captions("plain", "train", 35) for _ in range(2)]
    splits = make_lesson(twice, [TeacherAnswer("text", 1.0)] * 70, fewest_held_out=10).splits
    sides = [{e.image_digest() for e in part} for part in (splits.train, splits.validation)]
    assert (len(splits.train), len(splits.validation)) == (50, 20)
    assert not sides[0] & sides[1], "no image is on both sides"
    with pytest.raises(ValueError, match="nothing"):
        make_lesson(examples[:1], [TeacherAnswer("", 0.0)])
    with pytest.raises(ValueError, match="2 examples about 1 image; it takes two images"):
        make_lesson([examples[0]] * 2, [TeacherAnswer("text", 1.0)] * 2)


def test_all_labelled_images_are_chosen_by_but_those_the_source_has_seen(tmp_path: Path) -> None:
    names, folder = numbered(40), tmp_path / "data"
    folder.mkdir()
    write_pictures(folder, names)
    write_rows(folder, captioned(names))
    data = read_transfer_data(None, folder)
    assert data is not None
    assert len(data.development) == 40
    digests = [example.image_digest() for example in data.development]
    source = tmp_path / "adapter"
    source.mkdir()
    write_seen(source, SeenImages.of(digests[:7]))
    files = {SEEN_FILE: FileRecord.of((source / SEEN_FILE).read_bytes())}
    trained = Manifest("it", None, None, trained=True, training={KNOWN_BY: [Identity.FILE]}, files=files)
    stored = StoredAdapter("it", 1, source, trained)
    for given in (folder, list(data.development)):
        less = read_transfer_data(None, given, stored)
        assert less is not None
        assert [example.image_digest() for example in less.development] == digests[7:]
        assert less.seen == SeenShare("it", 40, 7, left_out=True)
