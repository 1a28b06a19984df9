"""An adapter knows the images that it was trained on, and is not measured with them."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorax_vlm.adapters.files import read_adapter
from lorax_vlm.adapters.manifest import MANIFEST_FILE
from lorax_vlm.adapters.seen import SEEN_FILE, SeenImages
from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example, answered
from lorax_vlm.data.noted import NotedStream
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.data.world.examples import scene_questions
from lorax_vlm.data.world.skills import skill_splits
from lorax_vlm.errors import UsageError
from lorax_vlm.evaluation.seen import Known, leave_out_seen
from lorax_vlm.multimodal import MultiModalLoRAExchange
from lorax_vlm.skills import answer, caption
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.vqa import VQASystem

QUICK = TrainConfig(max_steps=2, batch_size=4, learning_rate=5e-3, eval_every=2, patience=None)
OPTIONS: dict[str, Any] = {"config": QUICK, "progress": False, "complexity": "light"}
COLOR = "What color is the background?"


@pytest.fixture
def photos(scenes: list[Scene], tmp_path: Path) -> Path:
    """A folder of twelve images, each with two questions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for scene in scenes:
        scene.image.save(folder / f"{scene.seed}.png")
        for question in (COLOR, "Is the background white?"):
            answer = scene.background if question == COLOR else "yes" if scene.background == "white" else "no"
            rows.append({"file_name": f"{scene.seed}.png", "question": question, "answer": answer})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_exactly_the_images_that_were_trained_on(photos: Path, tmp_path: Path) -> None:
    """By hand: SHA-256 of each file against what the stored adapter says, in the folder and under other names."""
    system = VQASystem("mini", store=tmp_path / "store")
    splits = read_data(photos)
    stored = system.train_adapter("blip2_opt", "mine", "color", data=splits, **OPTIONS)
    seen = read_adapter(stored.folder, "mine", stored.manifest.files).seen
    assert seen is not None
    trained = {example.image for example in splits.train}
    assert 0 < len(trained) < 12
    assert seen.count == len(trained)
    for path in photos.glob("*.png"):
        assert seen.contains(Example(path, "", "").image_digest()) == (path in trained)
    asked = [dataclasses.replace(e, image=Path(str(e.image)).read_bytes(), digest="") for e in splits.train]
    held_out = list(splits.validation)
    report = system.evaluate("blip2_opt", "mine", examples=[*asked, *held_out])
    assert report.count == len(held_out), "the same images as bytes are the same images"
    assert report.seen is not None
    assert (report.seen.images, report.seen.seen, report.seen.left_out) == (12, len(trained), True)
    every = system.evaluate("blip2_opt", "mine", examples=[*asked, *held_out], include_seen=True)
    assert every.count == 24
    assert every.seen is not None
    assert every.seen.line() == (
        f"blip2-opt-mini.mine: trained on {len(trained)} of these 12 images; they are counted like the others"
    )
    with pytest.raises(UsageError, match=f"All {len(trained)} images were trained on by blip2-opt-mini.mine"):
        system.evaluate("blip2_opt", "mine", examples=asked)
    assert system.evaluate("blip2_opt", None, examples=asked).count == len(asked), "the base was trained on none"


def test_what_one_of_several_has_seen_is_left_out_for_all(photos: Path, tmp_path: Path) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    splits = read_data(photos)
    rows = list(splits.train)
    images = list(dict.fromkeys(example.image for example in rows))
    parts = {"one": images[:3], "two": images[2:5]}
    for name, some in parts.items():
        own = DataSplits([e for e in rows if e.image in some], splits.validation, name)
        system.train_adapter("blip2_opt", name, "color", data=own, **OPTIONS)
    chosen = system.unseen_examples([("blip2_opt", "one"), ("blip2_opt", None), ("blip2_opt", "two")], rows)
    assert {example.image for example in chosen.examples} == {*images} - {*images[:5]}
    assert [(share.images, share.seen) for share in chosen.shares] == [(len(images), 3), (len(images), 3)]
    given: dict[str, Any] = {"models": ["blip2_opt"], "alone": 1}
    asked = [[e.image for e in rows], [e.question for e in rows]]
    found = system.benchmark_models(*asked, **given)
    assert [row.seen and row.seen.seen for row in found] == [None, 3, 3]


def test_captions_are_compared_on_unseen_images(scenes: list[Scene], tmp_path: Path) -> None:
    system = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "store")
    examples = [Example(scene.image, scene.caption("concise"), f"{scene.seed}") for scene in scenes]
    splits = DataSplits(examples[:6], examples[6:9], "photos", test=examples[9:])
    system.train_adapter("mine", "concise", data=splits, **OPTIONS)
    base, mine = system.evaluate_adapters(["mine"], data=splits)
    assert (base.count, mine.count) == (6, 6), "validation and test"
    assert system.evaluate_adapter("mine", data=splits, include_seen=True).count == 12
    assert system.evaluate_adapter("mine", data=splits, split="train", include_seen=True).count == 6
    assert system.evaluate_adapter("mine", data=splits, split="held-out").count == 6
    one = DataSplits([], [], "one", test=examples[11:])
    assert system.evaluate_adapter("mine", data=one).count == 1


def test_nothing_is_known_of_an_adapter_from_elsewhere(photos: Path, tmp_path: Path) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    splits = read_data(photos)
    stored = system.train_adapter("blip2_opt", "mine", "color", data=splits, **OPTIONS)
    folder = tmp_path / "foreign"
    folder.mkdir()
    for file in stored.folder.iterdir():
        if file.name not in (SEEN_FILE, MANIFEST_FILE):
            (folder / file.name).write_bytes(file.read_bytes())
    MultiModalLoRAExchange(workspace=system.workspace).load_adapter(folder, "foreign", model="blip2_opt")
    report = system.evaluate("blip2_opt", "foreign", examples=list(splits.train))
    assert report.count == len(splits.train)
    assert report.seen is not None
    assert report.seen.line() == "foreign: not known whether it was trained on any of these " + (
        f"{report.seen.images} images"
    )


def test_drawn_scenes_are_compared_with_drawn_scenes_only(tmp_path: Path, scenes: list[Scene]) -> None:
    system = BLIP2CaptioningSystem("blip2-opt-mini", store=tmp_path / "store")
    system.train_adapter("drawn", "concise", data=skill_splits(caption("concise"), 8, 4), **OPTIONS)
    on_scenes = system.evaluate_adapter("drawn", count=4)
    assert on_scenes.seen is not None
    assert (on_scenes.seen.images, on_scenes.seen.seen) == (4, 0)
    files = [Example(scene.image, scene.caption("concise"), "") for scene in scenes]
    on_files = system.evaluate_adapter("drawn", data=DataSplits([], files, "photos"))
    assert on_files.seen is not None
    assert on_files.seen.seen is None, "the same scene in a file is another content, so a 0 would be a guess"


def test_a_stream_notes_what_it_gave(scenes: list[Scene]) -> None:
    examples = [Example(scene.image, "a", "") for scene in scenes]
    stream = NotedStream(iter(examples))
    given = [next(iter(stream)) for _ in range(2)]
    assert stream.images == {example.image_digest() for example in given}


def test_an_image_that_cannot_be_read_is_not_taken_for_seen(tmp_path: Path) -> None:
    known = scene_questions("color", "train", 2)
    gone = [answered(tmp_path / f"{name}.png", COLOR, ["red"], name) for name in "ab"]
    seen = SeenImages.of(example.image_digest() for example in known)
    asked = leave_out_seen([*known, *gone], {"mine": Known(seen, complete=True)})
    assert [example.name for example in asked.examples] == ["a", "b"]
    assert [(share.images, share.seen) for share in asked.shares] == [(4, 2)]


def test_a_folder_with_one_part_or_one_row_can_be_measured(photos: Path, tmp_path: Path) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    (tmp_path / "test").mkdir()
    lines = (photos / "metadata.jsonl").read_text().splitlines()
    name = json.loads(lines[0])["file_name"]
    (tmp_path / "test" / name).write_bytes((photos / name).read_bytes())
    (tmp_path / "test" / "metadata.jsonl").write_text(lines[0])
    for folder, count in ((photos, 24), (tmp_path / "test", 1)):
        examples = list(read_parts(folder).select("all"))
        assert len(examples) == count
        assert system.evaluate("blip2_opt", examples=examples).count == count


def test_a_merged_adapter_has_seen_what_its_parts_have(photos: Path, tmp_path: Path) -> None:
    system = VQASystem("mini", store=tmp_path / "store")
    rows = list(read_data(photos).train)
    images = list(dict.fromkeys(example.image for example in rows))
    for name, some in (("one", images[:2]), ("two", images[1:4])):
        own = DataSplits([e for e in rows if e.image in some], rows[-2:], name)
        system.train_adapter("blip2_opt", name, "color", data=own, **OPTIONS)
    exchange = MultiModalLoRAExchange("mini", store=tmp_path / "store")
    key, _ = exchange.merge_adapters(["blip2-opt-mini.one", "blip2-opt-mini.two"], "both")
    [share] = system.unseen_examples([("blip2_opt", key)], rows).shares
    assert (share.images, share.seen, share.complete) == (len(images), 4, True)
    system.train_adapter("blip2_opt", "drawn", "color", data=skill_splits(answer("color"), 8, 4), **OPTIONS)
    key, _ = exchange.merge_adapters(["blip2-opt-mini.one", "blip2-opt-mini.drawn"], "with.drawn")
    asked = system.unseen_examples([("blip2_opt", key)], rows)
    assert {example.image for example in asked.examples} == {*images[2:]}, "what is known is used"
    assert asked.shares[0].line() == (
        f"{key}: trained on at least 2 of these {len(images)} images; they are left out; of the others it is not known"
    )


def test_rows_that_two_parts_share_are_measured_too(photos: Path) -> None:
    """An image with a question in each part is not trained on; of 24 rows 24 can be asked."""
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    rows = [{**row, "split": "test" if n % 2 else "train"} for n, row in enumerate(rows[:8])] + [
        {**row, "split": "train"} for row in rows[8:]
    ]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    splits = read_parts(photos)
    assert splits.duplicates == 4
    assert len(list(splits.select("all"))) == 24
    trained, measured = list(splits.train), list(splits.select("held-out"))
    assert not {e.image_digest() for e in trained} & {e.image_digest() for e in measured}


def test_images_known_by_other_means_are_not_compared(photos: Path, tmp_path: Path) -> None:
    """The pixels of a file have another identity than its bytes: no 0 is claimed, either way round."""
    system = VQASystem("mini", store=tmp_path / "store")
    splits = read_data(photos)
    system.train_adapter("blip2_opt", "files", "color", data=splits, **OPTIONS)
    opened = {path: Image.open(path) for path in photos.glob("*.png")}

    def in_memory(examples: Sequence[Example]) -> list[Example]:
        return [dataclasses.replace(e, image=opened[Path(str(e.image))], digest="") for e in examples]

    rows, functions = list(splits.train), [dataclasses.replace(e, image=e.open_image, digest="") for e in splits.train]
    own = DataSplits(in_memory(rows), in_memory(splits.validation), "memory")
    system.train_adapter("blip2_opt", "pixels", "color", data=own, **OPTIONS)

    def said(adapter: str, examples: Sequence[Example]) -> str:
        report = system.evaluate("blip2_opt", adapter, examples=examples, include_seen=True)
        assert report.seen is not None
        return report.seen.line()

    assert "not known whether it was trained on any" in said("files", in_memory(rows))
    assert "not known whether it was trained on any" in said("files", functions)
    assert "not known whether it was trained on any" in said("pixels", rows)
    assert "not known whether it was trained on any" in said("files", scene_questions("color", "test", 3))
    count = len({e.image for e in rows})
    assert f"trained on {count} of these {count} images" in said("pixels", in_memory(rows))
    assert f"trained on {count} of these {count} images" in said("files", rows)
