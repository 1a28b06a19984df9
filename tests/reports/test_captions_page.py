"""The page of an evaluation of captions."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.data.examples import Example
from lorax_vlm.data.scenes import make_scene
from lorax_vlm.errors import ImageError, UsageError
from lorax_vlm.evaluation.captions import against_base, judge_reference_captions, judge_scene_captions
from lorax_vlm.evaluation.protocol import Subject
from lorax_vlm.evaluation.summary import caption_lines
from lorax_vlm.reports.captions_page import write_captions_page
from lorax_vlm.types import Caption, Generated, GenerationSettings

ODD = "<script>alert(1)</script>\u202egnp"


def said(*texts: str) -> list[Caption]:
    return [Caption.of(Generated(text, "eos", 1), "b", None) for text in texts]


def subject(adapter: str | None) -> Subject:
    return Subject("b", adapter, GenerationSettings())


def test_what_differs_from_the_references_is_shown_beside_its_image(tmp_path: Path) -> None:
    images = [[Example(Image.new("RGB", (8, 8), (n, 0, 0)), f"row {n} is red", f"{n}.png")] for n in range(10)]
    right = [f"row {n} is red" for n in range(10)]
    base = judge_reference_captions(said(*[ODD] * 10), 1.0, images, subject(None), 1.0, source="mine")
    mine = judge_reference_captions(said("no", *right[1:]), 1.0, images, subject("mine"), 1.0, source="mine")
    shown = {example.name: example.open_image() for (example,) in images}
    lines = caption_lines([base, mine], against_base([base, mine]))
    text = write_captions_page([base, mine], shown, tmp_path / "p.html", title=ODD, differences=lines).read_text()
    assert "base: 10 of 10 differ from their references, the first 8" in text
    assert "mine: 1 of 10 differ from their references<" in text
    assert "expected: row 0 is red" in text
    assert text.count("data:image/png;base64,") == 8 + 1
    assert [line.partition(" (")[0] for line in lines] == ["mine against base, exact match: +90.0 points"]  # 9 of 10
    assert lines[0] in text
    assert "Too few to tell: 10 examples." in text
    assert "<script>" not in text
    assert "\u202e" not in text


def test_captions_of_scenes_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    scenes = [make_scene(seed) for seed in range(3)]
    texts = [scenes[0].caption("concise"), scenes[1].caption("plain"), "a purple elephant"]
    report = judge_scene_captions(said(*texts), scenes, "concise", subject("short"), 1.0)
    images = {f"scene {scene.seed}": scene.image for scene in scenes}
    text = write_captions_page([report], images, tmp_path / "p.html", title="x").read_text()
    assert "short: 2 of 3 are not concise and true" in text
    assert re.findall(r'quiet">(not[^:]*); expected', text) == ["not in style", "not in style; not true"]


class Broken(dict[str, Image.Image]):
    def __getitem__(self, name: str) -> Image.Image:
        raise ImageError(name, "it is broken.")


def test_an_image_that_cannot_be_read_leaves_its_caption(tmp_path: Path) -> None:
    images = [[Example(Image.new("RGB", (8, 8)), "red", "a.png")]]
    report = judge_reference_captions(said("blue"), 1.0, images, subject(None), 1.0, source="mine")
    text = write_captions_page([report], Broken({"a.png": images[0][0].open_image()}), tmp_path / "p.html", title="x")
    assert "<img" not in text.read_text()
    assert "blue" in text.read_text()
    with pytest.raises(UsageError, match="At least one report"):
        write_captions_page([], {}, tmp_path / "p.html", title="x")
