"""Examples and the parts they are in: who an image is, what the data teach, and what is remembered of them."""

import copy
import io
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorax_vlm.data.asked import asked_examples
from lorax_vlm.data.examples import DataSplits, Example, MappedStream, answered
from lorax_vlm.data.images import load_image
from lorax_vlm.data.problems import Problem
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.data.sources import read_data
from lorax_vlm.data.world.examples import draw_scene_image, scene_captions
from lorax_vlm.errors import DataError, ImageError, UsageError
from tests.data_for_tests import captioned, numbered, picture, png, write_pictures, write_rows


def example(image: Any, **options: Any) -> Example:
    return Example(image, "text", "name", **options)


def draw(number: int, *, twice: bool = False) -> Image.Image:
    return picture(number * (2 if twice else 1))


# --- who an image is --------------------------------------------------------------------------------------------------


def test_equal_images_have_one_identity_and_others_another(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "copy of a.png").write_bytes((tmp_path / "a.png").read_bytes())
    same = [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "copy of a.png", png(0)]
    assert len({example(image).image_key for image in same}) == 1
    assert example(tmp_path / "b.png").image_key == example(png(1)).image_key != example(png(0)).image_key
    assert len(example(png(0)).image_digest()) == 64


def test_pixels_say_who_a_picture_is() -> None:
    pixels = np.asarray(picture(5))
    keys = [
        example(image).image_key for image in (picture(5), picture(5).copy(), pixels, picture(6), picture(5, (5, 6)))
    ]
    assert keys[0] == keys[1] == keys[2]
    assert len({*keys}) == 3
    palette = Image.new("P", (2, 2))
    other = palette.copy()
    other.putpalette([9, 9, 9] * 256)
    assert example(palette).image_key != example(other).image_key


def test_a_drawing_is_known_by_its_function_and_arguments() -> None:
    keys = {
        example(drawing).image_key
        for drawing in (partial(draw, 1), partial(draw, 2), partial(draw, 1, twice=True), partial(draw_scene_image, 1))
    }
    assert len(keys) == 4
    assert example(partial(draw, 1)).image_key == example(partial(draw, 1)).image_key
    assert example(partial(draw_scene_image, 3)).image_key == scene_captions("plain", "train", 4)[3].image_key


def test_functions_that_do_not_say_what_they_draw_are_known_by_the_drawing() -> None:
    class Painter:
        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self) -> Image.Image:
            return picture(self.number)

    drawings = [
        lambda: picture(1),
        lambda: picture(2),
        Painter(1),
        partial(lambda n: picture(n + 1), 1),
        partial(draw, 1),
    ]
    keys = [example(drawing).image_key for drawing in drawings]
    assert keys[0] == keys[2]
    assert keys[1] == keys[3]
    assert len({*keys}) == 3
    odd = partial(Painter.__call__, Painter(1))  # its argument does not say what it is
    assert example(odd).image_key == keys[0]


def test_an_identity_outlives_its_object() -> None:
    """Objects come and go at the same addresses; each image has its own key all the same."""
    keys = []
    for number in range(200):
        keys.append(Example(png(number), "text", "name").image_key)
    assert len({*keys}) == 200
    assert keys == [Example(png(number), "other", "else").image_key for number in range(200)]


def test_what_a_reader_knows_is_not_read_again(tmp_path: Path) -> None:
    write_pictures(tmp_path, numbered(4))
    write_rows(tmp_path, captioned(numbered(4)))
    splits = read_data(tmp_path)
    (tmp_path / "0.png").unlink()
    assert all(len(e.image_digest()) == 64 for e in (*splits.train, *splits.validation))
    assert all(e.digest for e in splits.with_prompt("a photo of").train)
    with pytest.raises(ImageError):
        example(tmp_path / "0.png").image_digest()


def test_questions_given_side_by_side_open_no_image() -> None:
    asked = asked_examples(["gone.png", "gone too.png"], ["a?", "b?"], ["x", ["y", "z"]])
    assert [e.answers for e in asked] == [("x",), ("y", "z")]
    with pytest.raises(ImageError):
        asked[0].open_image()
    with pytest.raises(UsageError, match="equally many"):
        asked_examples(["a.png"], ["a?", "b?"])
    [most] = asked_examples(["a.png"], ["a?"], [["red", "blue", "Blue"]])
    assert (most.target, most.answers) == ("blue", ("red", "blue", "Blue"))
    with pytest.raises(UsageError, match="Question 1 has an empty list of answers"):
        asked_examples(["a.png", "b.png"], ["a?", "b?"], ["x", []])


# --- what the data teach ----------------------------------------------------------------------------------------------

CAPTIONS = [Example(png(n), f"caption {n}", f"row {n}") for n in range(4)]
QUESTIONS = [answered(png(n), f"question {n}?", ["yes"], f"row {n}") for n in range(4)]


def splits(train: Any, validation: Any, **options: Any) -> DataSplits:
    return DataSplits(train, validation, "photos", **options)


def test_captions_and_questions_are_told_apart() -> None:
    captions, questions = splits(CAPTIONS[:3], CAPTIONS[3:]), splits(QUESTIONS[:3], QUESTIONS[3:])
    assert (captions.kind, questions.kind) == ("captions", "questions")
    assert captions.require_kind("captions") is captions
    with pytest.raises(DataError) as caught:
        captions.require_kind("questions")
    assert "photos: 1 problem.\n  it holds captions (4 rows), --task needs questions" in str(caught.value)
    assert "Leave --task out to train a style." in str(caught.value)
    with pytest.raises(DataError) as caught:
        questions.require_kind("captions")
    assert "it holds questions (4 rows), a style needs captions" in str(caught.value)
    assert "--task NAME" in str(caught.value)


def test_prompts_of_their_own_say_how_examples_are_asked() -> None:
    """Examples made in Python may put any text before the answer; nothing is put before theirs."""
    own = [replace(example, prompt="Question: How many? Answer:") for example in CAPTIONS]
    asked = splits(own[:3], own[3:])
    assert asked.require_kind("questions") is asked.require_kind("captions") is asked
    with pytest.raises(DataError, match="it holds captions"):
        splits(own[:3], CAPTIONS[3:]).require_kind("questions")


def test_mixed_data_are_refused_whoever_asks() -> None:
    mixed = splits(CAPTIONS[:2], QUESTIONS[:3])
    for ask in (lambda: mixed.kind, lambda: mixed.require_kind("captions"), lambda: mixed.require_kind("questions")):
        with pytest.raises(DataError, match=r"captions \(2 rows\) and questions \(3 rows\).*\n.*--task"):
            ask()


def test_a_question_is_never_asked_of_a_caption() -> None:
    with pytest.raises(DataError, match="row 0 has no question, and the prompt 'Question: "):
        splits(CAPTIONS, QUESTIONS).with_prompt("Question: {question} Answer:")
    with pytest.raises(DataError, match="row 3 has no question"):
        splits(QUESTIONS, [], test=[CAPTIONS[3]]).with_prompt("{question}")
    stream = splits(MappedStream(CAPTIONS, lambda e: e), QUESTIONS).with_prompt("{question}")
    with pytest.raises(DataError, match="row 0 has no question"):
        list(stream.train)
    own = Example(png(0), "text", "row", prompt="its own")
    assert splits([own], [own]).with_prompt("{question}").train[0].prompt == "its own"


def test_prompts_reach_every_part() -> None:
    prompted = splits(QUESTIONS[:1], QUESTIONS[1:2], test=QUESTIONS[2:]).with_prompt("Q: {question} A:")
    assert [e.prompt for part in prompted.parts().values() for e in part] == [f"Q: question {n}? A:" for n in range(4)]


# --- parts ------------------------------------------------------------------------------------------------------------


def test_parts_and_what_can_be_chosen_of_them() -> None:
    all_of_them = splits(CAPTIONS[:2], CAPTIONS[2:3], test=CAPTIONS[3:])
    assert {part: len(rows) for part, rows in all_of_them.parts().items()} == {"train": 2, "validation": 1, "test": 1}
    assert [len(all_of_them.select(which)) for which in ("train", "held-out", "all")] == [2, 2, 4]
    assert all_of_them.row_count == 4


@pytest.mark.parametrize(("train", "validation"), [(0, 3), (3, 0), (0, 0)])
def test_a_side_without_examples_cannot_be_trained_with(train: int, validation: int) -> None:
    skipped = [Problem("a.jsonl:1", "the caption is empty")]
    found = splits(CAPTIONS[:train], CAPTIONS[:validation], skipped=skipped, duplicates=7)
    with pytest.raises(DataError) as caught:
        found.require_trainable()
    assert f"{train} training and {validation} validation examples; both need at least one" in str(caught.value)
    assert "7 training examples show images of the validation or test examples" in str(caught.value)
    assert "a.jsonl:1: the caption is empty" in str(caught.value)


def test_a_stream_is_not_asked_for_its_length() -> None:
    stream = splits(MappedStream(CAPTIONS, lambda e: e), CAPTIONS[:1])
    assert stream.require_trainable() is stream
    assert (stream.streamed, stream.train_count, stream.row_count, stream.identity()["sha256"]) == (
        True,
        None,
        None,
        None,
    )


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_an_identity_is_of_content_and_not_of_names(tmp_path: Path) -> None:
    for folder, name in (("one", "{}.png"), ("two/deeper", "picture {}.png")):
        write_pictures(tmp_path / folder, [name.format(n) for n in range(6)])
        write_rows(tmp_path / folder, [{"file_name": name.format(n), "caption": f"c {n}"} for n in range(6)])
    one, two = read_data(tmp_path / "one"), read_data(tmp_path / "two" / "deeper")
    assert one.identity()["sha256"] == two.identity()["sha256"]
    assert (one.identity()["source"], two.identity()["source"]) == ("one", "deeper")
    assert str(tmp_path) not in str(one.identity()) + one.summary() + "".join(e.name for e in one.train)


@pytest.mark.parametrize(
    "change",
    [
        {"image": png(99)},
        {"target": "corrected"},
        {"prompt": "a photo of"},
        {"question": "another?"},
        {"answers": ("a", "b")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_trained_on_changes_the_identity(change: dict[str, Any]) -> None:
    fields = {"image": png(0), "target": "text", "name": "row", "prompt": "", "question": "", "answers": ("a",)}
    before = splits([Example(**fields)], CAPTIONS[1:]).identity()
    after = splits([Example(**{**fields, **change})], CAPTIONS[1:]).identity()
    assert before["sha256"] != after["sha256"]
    assert {**before, "sha256": 0} == {**after, "sha256": 0}


def test_the_part_belongs_to_the_identity_and_names_do_not() -> None:
    def digest(*parts: list[Example]) -> str:
        return str(splits(parts[0], parts[1], test=parts[2]).identity()["sha256"])

    a, b, c = CAPTIONS[:1], CAPTIONS[1:2], CAPTIONS[2:3]
    assert len({digest(a, b, c), digest(b, a, c), digest(a, c, b), digest([*a, *b], [], c)}) == 4
    renamed = [Example(a[0].image, a[0].target, "another name", kind="colour")]
    assert digest(renamed, b, c) == digest(a, b, c)


def test_drawn_scenes_are_identified_without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = splits(scene_captions("plain", "train", 5), scene_captions("plain", "validation", 2))
    monkeypatch.setattr("lorax_vlm.data.world.examples.make_scene", lambda seed: pytest.fail(f"{seed} was drawn"))
    assert len(scenes.identity()["sha256"]) == 64
    assert make_scene(0)


def test_first_examples_show_different_images() -> None:
    rows = [Example(png(n // 3), f"caption {n}", f"row {n}") for n in range(12)]
    assert [e.name for e in splits(rows, rows).first(3)] == ["row 0", "row 3", "row 6"]


def test_what_is_left_out_is_said_and_can_be_written(tmp_path: Path) -> None:
    skipped = [Problem(f"a.jsonl:{n}", "the caption is empty", "caption", "''", "text") for n in range(8)]
    found = splits(CAPTIONS, CAPTIONS, skipped=skipped, notes=["3 paths with backslashes, read as /"])
    lines = found.describe()
    assert "8 malformed rows left out" in lines[0]
    assert "3 paths with backslashes, read as /" in lines
    assert "left out: a.jsonl:0: the caption is empty" in lines
    assert "left out: 3 more rows" in lines
    written = found.write_left_out(tmp_path / "run" / "left_out.jsonl").read_text().splitlines()
    assert len(written) == 8


def test_a_problem_is_a_line_with_parts_that_survive_copies() -> None:
    problem = Problem("a.jsonl:1\x1b", "the caption is\x07 empty", "caption", "''", "text")
    assert problem == "a.jsonl:1\\x1b: the caption is\\x07 empty"
    for other in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert (other, other.record()) == (problem, problem.record())
    assert problem.record()["place"] == "a.jsonl:1\x1b"


def test_what_a_function_gives_is_read_like_anything_else(tmp_path: Path) -> None:
    turned, picture = io.BytesIO(), Image.new("RGB", (8, 4), "red")
    picture.paste("blue", (0, 0, 2, 4))
    exif = Image.Exif()
    exif[274] = 6
    picture.save(turned, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(turned.getvalue())
    upright = np.asarray(load_image(tmp_path / "a.png"))
    assert upright.shape == (8, 4, 3)
    for source in (lambda: Image.open(tmp_path / "a.png"), lambda: upright, turned.getvalue):
        assert np.array_equal(np.asarray(Example(source, "", "").open_image()), upright)

    def fails() -> Image.Image:
        raise OSError("stale handle")

    with pytest.raises(ImageError, match="the function that draws it failed: OSError: stale handle"):
        Example(fails, "", "").open_image()
    with pytest.raises(ImageError, match="gives another function"):
        Example(lambda: fails, "", "").open_image()  # type: ignore[arg-type, return-value]
