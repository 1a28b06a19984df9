"""The page of an evaluation: which examples it shows first."""

import re
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.evaluation.results import AnswerRecord, VQAReport
from lorax_vlm.reports.questions_page import write_vqa_page
from lorax_vlm.types import Interval

SAID = {
    "all right": ("1", "1", "1"),
    "two words for one": ("0", "9", "0"),
    "only the middle one": ("1", "0", "1"),
    "only the last one": ("0", "0", "1"),
    "all wrong": ("0", "0", "0"),
}


def reports() -> list[VQAReport]:
    found, share = [], Interval(0.5, 0.4, 0.6, 5, 5)
    for place, name in enumerate((None, "one", "two")):
        records = tuple(
            AnswerRecord(question, "kind", question, texts[place], ("1",), float(texts[place] == "1"))
            for question, texts in SAID.items()
        )
        found.append(VQAReport("base", name, "by hand", "exact match", share, {}, records, 1.0))
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1)])
def test_questions_on_which_any_of_the_reports_differ_come_first(order: tuple[int, ...], tmp_path: Path) -> None:
    made = reports()
    images = {question: Image.new("RGB", (8, 8)) for question in SAID}
    text = write_vqa_page([made[place] for place in order], images, tmp_path / "page.html", title="x").read_text()
    shown = re.findall(r"<figcaption>(.*?)<br>", text)
    assert shown == ["only the middle one", "only the last one", "two words for one", "all right", "all wrong"]
