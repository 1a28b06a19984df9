"""JSON files of other shapes: lists, VQA-RAD, VizWiz, TextVQA, GQA, CLEVR, Karpathy; odd ones of COCO and VQAv2."""

import json
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.readers.documents import read_coco_captions, read_vqav2
from lorax_vlm.data.sources import read_data, read_parts
from lorax_vlm.errors import DataError
from tests.data_for_tests import all_examples, image_names, numbered, targets, write_json, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "im", numbered(8))
    return tmp_path


QA = {"question": "q?", "answer": "a"}

# What a data set looks like (for each of the numbers 0 to 7), and the answers or captions that are read.
SHAPES: dict[str, tuple[Any, list[str]]] = {
    "list of captions": ([{"image": f"{n}.png", "caption": f"c{n}"} for n in range(8)], [f"c{n}" for n in range(8)]),
    "several captions": ([{"image": f"{n}.png", "caption": ["a", "b"]} for n in range(8)], ["a", "b"] * 8),
    "VQA-RAD": (
        [
            {
                "qid": n,
                "image_name": f"{n}.png",
                "question": "q?",
                "answer": n,
                "answer_type": "CLOSED",
                "evaluation": "given",
            }
            for n in range(8)
        ],
        [str(n) for n in range(8)],
    ),
    "VizWiz": (
        [
            {
                "image": f"{n}.png",
                "question": "q?",
                "answers": [{"answer": "a", "answer_confidence": "yes"}] * 9
                + [{"answer": "", "answer_confidence": "no"}],
                "answer_type": "other",
                "answerable": 1,
            }
            for n in range(8)
        ],
        ["a"] * 8,
    ),
    "TextVQA": (
        {
            "dataset_type": "val",
            "data": [{"question_id": n, "image_id": str(n), "question": "q?", "answers": ["a"] * 10} for n in range(8)],
        },
        ["a"] * 8,
    ),
    "GQA": ({f"0{n}": {"imageId": str(n), "fullAnswer": "it is", **QA} for n in range(8)}, ["a"] * 8),
    "CLEVR": (
        {"info": {}, "questions": [{"image_filename": f"{n}.png", "split": "val", **QA} for n in range(8)]},
        ["a"] * 8,
    ),
    "ids as numbers": ([{"image_id": n, **QA} for n in range(8)], ["a"] * 8),
    "Flickr30k of Karpathy": (
        {
            "images": [
                {"filename": f"{n}.png", "sentences": [{"raw": "a", "tokens": ["a"]}, {"raw": "b"}], "split": "train"}
                for n in range(8)
            ],
            "dataset": "flickr30k",
        },
        ["a", "b"] * 8,
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_shapes(folder: Path, shape: str, encoding: str) -> None:
    document, expected = SHAPES[shape]
    path = write_json(folder / "d.json", document, encoding)
    splits = read_parts(path, images=folder / "im")
    assert sorted(targets(all_examples(splits))) == sorted(expected)
    assert len({e.image_digest() for e in all_examples(splits)}) == 8
    assert all(str(folder) not in e.name and e.name.startswith("d.json: ") for e in all_examples(splits))
    assert splits.source == "d.json"


def test_types_of_questions(folder: Path) -> None:
    for shape, kind in (("VQA-RAD", "CLOSED"), ("VizWiz", "other")):
        path = write_json(folder / "d.json", SHAPES[shape][0])
        assert {e.kind for e in all_examples(read_data(path, images=folder / "im"))} == {kind}


def test_rows_by_line_in_a_json_file(folder: Path) -> None:
    rows = SHAPES["list of captions"][0]
    (folder / "d.json").write_text("\n".join(map(json.dumps, rows)))
    assert len(all_examples(read_data(folder / "d.json", images=folder / "im"))) == 8


def test_images_beside_a_list_need_no_folder(folder: Path) -> None:
    path = write_json(folder / "im" / "list.json", SHAPES["list of captions"][0])
    assert len(all_examples(read_data(path))) == 8
    path = write_json(folder / "list.json", SHAPES["list of captions"][0])
    with pytest.raises(DataError, match=r"does not exist[\s\S]*Pass their folder: --images"):
        read_data(path)


def test_karpathy_s_parts(folder: Path) -> None:
    write_pictures(folder / "coco", [f"val2014/COCO_val2014_{n:012d}.jpg" for n in range(8)])
    said = ["train", "restval", "val", "test", "train", "train", "restval", "val"]
    rows = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "split": part,
            "sentences": [{"raw": f"c{n}"}],
        }
        for n, part in enumerate(said)
    ]
    path = write_json(folder / "dataset_coco.json", {"images": rows, "dataset": "coco"})
    splits = read_data(path, images=folder / "coco")
    assert [targets(part) for part in splits.parts().values()] == [["c0", "c1", "c4", "c5", "c6"], ["c2", "c7"], ["c3"]]
    assert splits.test[0].name == "dataset_coco.json: images[3] (cocoid 3)"
    assert read_data(path, images=folder / "coco" / "val2014").identity() == splits.identity()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (5, "no list"),
        ("text", "no list"),
        (None, "no list"),
        ({}, "no list"),
        ({"rows": [1]}, "no list 'images'"),
        ({"images": []}, "no list 'annotations'"),
        ({"images": 3, "annotations": []}, "no list 'images'"),
        ({"annotations": [{"question_id": 1, "answers": []}]}, "VQAv2 answers without questions"),
        ({"questions": [{"question_id": 1, "image_id": 1, "question": "q?"}]}, "VQAv2 questions without answers"),
        ([], "it has no rows"),
        ([1, "a", None, []], "expected an object, found int"),
        ([{"image": "0.png"}], "neither 'caption' nor 'text' nor 'question' (columns: image)"),
        ([{"caption": "a"}], "no 'file_name' (columns: caption)"),
        ([{"image": "../secret.png", "caption": "a"}], "leads out of the folder"),
        ([{"image": "https://host/0.png", "caption": "a"}], "is an address"),
        ([{"image": {"bytes": "AAAA"}, "caption": "a"}], "expected the name of a file"),
        ([{"image_id": "nothing", "caption": "a"}], "no image file for image_id nothing"),
        ({"a": {"imageId": "0"}, "b": {"imageId": "1"}}, "neither 'caption'"),
        ({"images": [{"sentences": 5, "filename": "0.png"}]}, "neither 'caption'"),
        ({"images": [{"sentences": [{"tokens": []}], "filename": "0.png"}]}, "the caption is empty or not text: None"),
        ({"images": [{"sentences": [], "filename": "0.png"}]}, "the caption is empty or not text: an empty list"),
    ],
)
def test_documents_that_cannot_be_read(folder: Path, document: Any, reason: str) -> None:
    write_pictures(folder, ["secret.png"], first=77)
    with pytest.raises(DataError) as caught:
        read_data(write_json(folder / "d.json", document), images=folder / "im")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "too deep"),
        ('[{"n": ' + "9" * 5000 + "}]", "thousands of digits"),
        ('{"a": {}, "a": {}}', "occurs twice"),
        ("[{}", "not JSON"),
        ("", "not JSON"),
        ("[NaN]", "NaN is no number"),
    ],
)
def test_texts_that_are_no_document(folder: Path, text: str, reason: str) -> None:
    (folder / "d.json").write_text(text)
    for read in (
        lambda: read_data(folder / "d.json", images=folder / "im"),
        lambda: read_coco_captions(folder / "d.json", folder / "im"),
        lambda: read_vqav2(folder / "d.json", folder / "d.json", folder / "im"),
    ):
        with pytest.raises(DataError, match=reason):
            read()


# --- COCO -------------------------------------------------------------------------------------------------------------


def coco(folder: Path, images: list[Any], annotations: list[Any] | None = None) -> Path:
    """Eight sound images with a caption each, and others in front of or behind them."""
    sound = [{"id": n, "file_name": f"{n}.png"} for n in range(8)]
    said = [{"image_id": n, "caption": f"c{n}"} for n in range(8)]
    return write_json(folder / "c.json", {"images": [*sound, *images], "annotations": [*said, *(annotations or [])]})


@pytest.mark.parametrize(
    ("images", "annotations", "problems"),
    [
        ([{"file_name": "x.png"}], [], ["images[8]: no 'id'"]),
        ([{"id": None, "file_name": "x.png"}], [], ["images[8]: the id is None"]),
        ([{"id": [1], "file_name": "x.png"}], [], ["images[8]: the id is a list of 1"]),
        (
            [None, "x", 5],
            [],
            [f"images[{n}]: expected an object, found {t}" for n, t in ((8, "NoneType"), (9, "str"), (10, "int"))],
        ),
        ([{"id": 9}], [], []),
        ([{"id": 9}], [{"image_id": 9, "caption": "c"}], ["annotations[8]: image id 9 has no 'file_name'"]),
        (
            [{"id": 9, "file_name": 5}],
            [{"image_id": 9, "caption": "c"}],
            ["annotations[8]: file_name is 5, expected the name of a file"],
        ),
        (
            [{"id": 9, "coco_url": 5}],
            [{"image_id": 9, "caption": "c"}],
            ["annotations[8]: image id 9 has no 'file_name'"],
        ),
        (
            [{"id": 9, "coco_url": "http://[::1/x"}],
            [{"image_id": 9, "caption": "c"}],
            ["annotations[8]: image id 9 has no 'file_name'"],
        ),
        ([], [None], ["annotations[8]: expected an object, found NoneType"]),
        ([], [["image_id"]], ["annotations[8]: expected an object, found list"]),
        ([], [{"caption": "c"}], ["annotations[8]: no image of id None"]),
        ([], [{"image_id": 99, "caption": "c"}], ["annotations[8]: no image of id 99"]),
        ([], [{"image_id": {"a": 1}, "caption": "c"}], ["annotations[8]: no image of id an object of 1"]),
        ([], [{"image_id": 1, "caption": 5}], ["annotations[8]: the caption is empty or not text: 5"]),
        ([], [{"image_id": 1, "caption": None}], ["annotations[8]: the caption is empty or not text: None"]),
        ([{"id": 0, "file_name": "0.png"}], [], []),
        ([{"id": "0", "file_name": "0.png"}], [], ["images[8]: id 0 a second time, with other values"]),
        (
            [{"id": 0, "file_name": "5.png"}],
            [],
            [
                "images[8]: id 0 a second time, with other values",
                "annotations[0]: image id 0 stands for '0.png' and '5.png'",
            ],
        ),
        (
            [{"id": 9, "file_name": "../out.png"}],
            [{"image_id": 9, "caption": "c"}],
            ["annotations[8]: file_name '../out.png' leads out of the folder"],
        ),
    ],
)
def test_odd_rows_of_coco(folder: Path, images: list[Any], annotations: list[Any], problems: list[str]) -> None:
    write_pictures(folder, ["out.png"], first=66)
    path = coco(folder, images, annotations)
    splits = read_parts(path, images=folder / "im", skip_bad_rows=True)
    assert [problem.removeprefix(f"{path}: ") for problem in splits.skipped] == problems
    lost = sum("annotations[0]" in problem for problem in problems)
    assert sorted(targets(all_examples(splits))) == [f"c{n}" for n in range(lost, 8)]
    if problems:
        with pytest.raises(DataError) as caught:
            read_data(path, images=folder / "im")
        assert [str(problem) for problem in splits.skipped] == [str(problem) for problem in caught.value.problems]


def test_thousands_of_images_of_one_id_take_no_time(folder: Path) -> None:
    path = coco(folder, [{"id": 9, "file_name": f"x{n}.png"} for n in range(20_000)])
    assert len(read_parts(path, images=folder / "im", skip_bad_rows=True).skipped) == 19_999


@pytest.mark.parametrize(
    "image",
    [
        {"coco_url": "http://images.cocodataset.org/val2014/9.png"},
        {"coco_url": "http://images.cocodataset.org/val2014/9.png?x=1#y", "file_name": None},
        {"file_name": "9.png", "coco_url": "http://host/other.png"},
        {"file_name": "sub\\9.png"},
        {"file_name": "sub/9.png"},
        {"file_name": "im/sub/9.png"},
    ],
)
def test_ways_to_name_a_file_of_coco(folder: Path, image: dict[str, Any]) -> None:
    write_pictures(folder / "im", ["9.png"], first=9)
    write_pictures(folder / "im", ["sub/9.png"], first=9)
    path = coco(folder, [{"id": "nine", **image}], [{"image_id": "nine", "caption": "c9"}])
    splits = read_data(path, images=folder / "im")
    assert len(all_examples(splits)) == 9
    assert bool(splits.notes) == ("\\" in str(image.get("file_name")))


# --- VQAv2 ------------------------------------------------------------------------------------------------------------


def pairs(folder: Path, questions: list[Any], annotations: list[Any]) -> dict[str, Path]:
    """Eight sound questions with an answer each, and others behind them."""
    asked = [{"question_id": n, "image_id": n, "question": f"q{n}?"} for n in range(8)]
    said = [{"question_id": n, "image_id": n, "answers": [{"answer": f"a{n}"}]} for n in range(8)]
    return {
        "questions": write_json(folder / "q.json", {"questions": [*asked, *questions]}),
        "annotations": write_json(folder / "a.json", {"annotations": [*said, *annotations]}),
        "images": folder / "im",
    }


NINE = {"question_id": 9, "image_id": 1, "question": "q9?"}


@pytest.mark.parametrize(
    ("questions", "annotations", "answer"),
    [
        ([NINE], [{"question_id": 9, "answers": "yes"}], "yes"),
        ([NINE], [{"question_id": 9, "answers": {"answer": "yes"}}], "yes"),
        ([NINE], [{"question_id": 9, "answers": ["yes", "no", "yes"]}], "yes"),
        ([NINE], [{"question_id": 9, "answers": [], "multiple_choice_answer": "yes"}], "yes"),
        ([NINE], [{"question_id": 9, "answers": None, "multiple_choice_answer": True}], "yes"),
        ([NINE], [{"question_id": 9, "answers": [{"answer": 2}]}], "2"),
        ([NINE], [{"question_id": 9, "answers": [{"answer": ""}, {"answer": "yes"}]}], "yes"),
        ([NINE], [{"question_id": "9", "image_id": "1", "answers": ["yes"]}], "yes"),
        ([{**NINE, "question_id": "nine", "image_id": "1"}], [{"question_id": "nine", "answers": ["yes"]}], "yes"),
        ([NINE, NINE], [{"question_id": 9, "answers": ["yes"]}] * 2, "yes"),
        ([{**NINE, "caption": "c", "text": "t"}], [{"question_id": 9, "answers": ["yes"], "caption": "d"}], "yes"),
    ],
)
def test_ways_to_answer(folder: Path, questions: list[Any], annotations: list[Any], answer: str) -> None:
    splits = read_vqav2(**pairs(folder, questions, annotations))
    assert sorted(targets(all_examples(splits))) == sorted([*(f"a{n}" for n in range(8)), answer])


@pytest.mark.parametrize(
    ("questions", "annotations", "problems"),
    [
        (
            [NINE],
            [{"question_id": 9, "answers": {"text": "x"}}],
            ["an answer of question_id 9 is an object of 1 without 'answer'"],
        ),
        (
            [NINE],
            [{"question_id": 9, "answers": [["yes"]]}],
            ["an answer of question_id 9 is empty or not text: a list of 1"],
        ),
        (
            [NINE],
            [{"question_id": 9, "answers": [{"answer": ""}]}],
            ["an answer of question_id 9 is empty or not text"],
        ),
        ([NINE], [], ["question_id 9 has no annotation"]),
        ([{**NINE, "question_id": [9]}], [], ["questions[8]: the question_id is a list of 1"]),
        ([{**NINE, "question_id": True}], [], ["questions[8]: the question_id is True"]),
        (["x", None], [], ["question_id, image_id or question is missing"] * 2),
        ([{"question_id": 9}], [], ["questions[8]: question_id, image_id or question is missing"]),
        ([], ["x"], ["annotations[8]: no 'question_id'"]),
        ([], [{"question_id": {}}], ["annotations[8]: the question_id is an empty object"]),
        ([{**NINE, "image_id": 99}], [{"question_id": 9, "answers": ["a"]}], ["no image file for image_id 99"]),
        (
            [NINE],
            [{"question_id": 9, "image_id": 2, "answers": ["a"]}],
            ["the question is about image_id 1, its annotation about 2"],
        ),
        (
            [NINE, {**NINE, "question": "other?"}],
            [{"question_id": 9, "answers": ["a"]}],
            ["questions[8]: question_id 9 a second time", "questions[9]: question_id 9 a second time"],
        ),
        (
            [NINE],
            [{"question_id": 9, "answers": ["a"]}, {"question_id": 9, "answers": ["b"]}],
            ["annotations[9]: question_id 9 a second time", "question_id 9 has 2 annotations that differ"],
        ),
    ],
)
def test_pairs_that_do_not_belong_together(
    folder: Path, questions: list[Any], annotations: list[Any], problems: list[str]
) -> None:
    files = pairs(folder, questions, annotations)
    with pytest.raises(DataError) as caught:
        read_vqav2(**files)
    assert len(caught.value.problems) == len(problems)
    for expected, problem in zip(problems, caught.value.problems, strict=True):
        assert expected in problem
    splits = read_vqav2(**files, skip_bad_rows=True)
    assert sorted(targets(all_examples(splits))) == [f"a{n}" for n in range(8)]
    assert [str(problem) for problem in splits.skipped] == [str(problem) for problem in caught.value.problems]


def test_an_annotation_is_told_from_another_by_its_image(folder: Path) -> None:
    """Two sets whose questions are numbered alike, in one file: the image says whose answer it is."""
    files = pairs(folder, [], [{"question_id": 0, "image_id": 5, "answers": ["another's"]}])
    splits = read_vqav2(**files, skip_bad_rows=True)
    assert sorted(targets(all_examples(splits))) == [f"a{n}" for n in range(8)]
    assert len(splits.skipped) == 1


def test_thumbnails_beside_the_images(folder: Path) -> None:
    files = pairs(folder, [], [])
    write_pictures(folder / "im", [f"thumb_{n:03d}.png" for n in range(8)], first=50)
    write_pictures(folder / "im", [f"small/{n}.png" for n in range(8)], first=50)
    assert sorted(image_names(all_examples(read_vqav2(**files)))) == numbered(8)
    (folder / "im" / "0.jpg").write_bytes((folder / "im" / "thumb_000.png").read_bytes())
    with pytest.raises(DataError, match=r"image_id 0 may be 2 files: '0\.jpg', '0\.png'"):
        read_vqav2(**files)
