"""Reports, worked by hand."""

from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.data.world.captions import CaptionScore
from lorax_vlm.evaluation.captions import grouped_by_image, judge_reference_captions, judge_scene_captions
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.reports.sheet import draw_comparison_sheet
from lorax_vlm.types import Caption, Generated, GenerationSettings

FACTS = (Subject("b", "a", GenerationSettings()), 1.5)


def caption(text: str, finish: str = "eos") -> Caption:
    return Caption.of(Generated(text, finish, len(text.split())), "b", "a")  # type: ignore[arg-type]


def test_shares_are_counted_per_caption(scenes: list[Scene]) -> None:
    four = scenes[:4]
    captions = [
        caption(four[0].caption("plain")),  # in style and true
        caption(four[1].caption("detailed")),  # true, another style
        caption(
            "a purple circle" if four[2].caption("plain") != "a purple circle" else "a red star"
        ),  # in style, untrue
        caption("nonsense", "length"),
    ]
    report = judge_scene_captions(captions, four, "plain", *FACTS)
    assert (report.in_style, report.true, report.in_style_and_true, report.finished) == (0.5, 0.5, 0.25, 0.75)
    assert [failure["caption"] for failure in report.failures] == captions[1:]
    assert report.protocol["decoding"]["num_beams"] == 1
    assert set(report.protocol["versions"]) == {"lorax-vlm", "transformers", "torch"}


def test_references_are_compared_word_for_word() -> None:
    targets = enumerate(["A cat.", "a dog", "a  bird", "fish"])
    examples = [[Example(Image.new("RGB", (2, 2), (i, 0, 0)), target, f"row {i}")] for i, target in targets]
    report = judge_reference_captions(
        [caption("a cat"), caption("a dog and more"), caption("a bird"), caption("")],
        0.25,
        examples,
        *FACTS,
        source="s",
    )
    assert (report.exact_match, report.loss, report.count) == (0.5, 0.25, 4)
    assert [failure["example"] for failure in report.failures] == ["row 1", "row 3"]


def test_any_reference_of_an_image_counts() -> None:
    """Each image has one caption, right when it is one of its references."""
    images = [
        [Example(Image.new("RGB", (2, 2), (i, 0, 0)), target, f"row {i}") for target in ("a cat", "A dog!", "it")]
        for i in range(20)
    ]
    said = [caption(("a cat", "a dog", "another", "")[i % 4]) for i in range(20)]
    report = judge_reference_captions(said, float("nan"), images, *FACTS, source="s")
    assert (report.count, report.exact_match, report.loss) == (20, 0.5, None)
    assert (report.protocol["images"], report.protocol["references"]) == (20, 60)
    assert report.reasons["CIDEr"] == "all images have the same references, so every word has the weight 0"


@pytest.mark.parametrize("count", [1, 2, 9])
def test_of_few_images_no_cider_is_printed(count: int) -> None:
    images = [[Example(Image.new("RGB", (2, 2), (i, 0, 0)), f"the cat {i} sits there", "row")] for i in range(count)]
    said = [caption(f"the cat {i} sits there") for i in range(count)]
    report = judge_reference_captions(said, 0.5, images, *FACTS, source="s")
    assert report.text_metrics["CIDEr"] is None
    assert report.text_metrics["ROUGE-L"] == pytest.approx(1.0)
    reason = f"of {count} images it is chance which words are rare" if count > 1 else "of one image every word has"
    assert reason in report.reasons["CIDEr"]


def test_equal_images_are_one_and_are_captioned_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "copy of a.png"):
        Image.new("RGB", (2, 2), (ord(name[-5]) % 2 * 200, 0, 0)).save(tmp_path / name)
    names = ("a.png", "b.png", "copy of a.png", "a.png")
    groups = grouped_by_image([Example(tmp_path / name, name, name) for name in names])
    assert [[example.name for example in same] for same in groups] == [["a.png", "copy of a.png", "a.png"], ["b.png"]]


def test_nothing_to_judge(scenes: list[Scene]) -> None:
    with pytest.raises(ValueError, match="At least one scene"):
        judge_scene_captions([], [], "plain", *FACTS)
    with pytest.raises(ValueError, match="At least one example"):
        judge_reference_captions([], 0.0, [], *FACTS, source="s")
    with pytest.raises(ValueError, match="a caption of each: 2, 1"):
        judge_scene_captions([caption("a")], scenes[:2], "plain", *FACTS)


def test_the_sheet_is_a_picture_that_grows_with_its_text(scenes: list[Scene], tmp_path) -> None:
    few = draw_comparison_sheet(scenes[0].image, {"base": "a red star"}, tmp_path / "a" / "few.png")
    many = {f"adapter-{i}": "a long sentence about a great many things " * 6 for i in range(6)}
    scores = {name: CaptionScore(True, False) for name in many}
    much = draw_comparison_sheet(
        scenes[0].image, {**many, "empty": ""}, tmp_path / "many.png", scores=scores, title="t"
    )
    with Image.open(few) as small, Image.open(much) as large:
        assert small.format == large.format == "PNG"
        assert large.height > small.height
