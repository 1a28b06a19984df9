"""The published set of ``benchmarks/easy_vqa.py``: as installed, as a folder, and a few steps of the whole way."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import easy_vqa
from lorax_vlm.data.sources import read_data


def test_the_folder_is_the_set(tmp_path: Path) -> None:
    """Counts of the first 40 images of each part, from the package's own files."""
    import easy_vqa as package

    easy_vqa.write_set(tmp_path / "set", images=40)
    splits = read_data(tmp_path / "set")
    given = Counter(
        (text, answer) for text, answer, image in zip(*package.get_test_questions(), strict=True) if image < 40
    )
    assert Counter((e.question, e.target) for e in splits.test) == given
    asked = sum(image < 40 for image in package.get_train_questions()[2])
    assert len(splits.train) + len(splits.validation) + splits.duplicates == asked
    assert {e.kind for e in splits.test} == {"yes/no", "shape", "colour"}


def test_every_answer_has_a_group() -> None:
    import easy_vqa as package

    assert len(package.get_test_questions()[0]) == 9673
    groups = Counter(easy_vqa.answer_group(answer) for answer in package.get_answers())
    assert groups == {"yes/no": 2, "shape": 3, "colour": 8}


@pytest.mark.parametrize("curve", [False, True])
def test_a_few_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], curve: bool) -> None:
    few = ["--model", "blip2-opt-mini", "--steps", "2", "--images", "12", "--questions", "20"]
    monkeypatch.setattr(easy_vqa, "CURVE_SITES", ("lm", "projection"))
    monkeypatch.setattr(sys, "argv", ["easy_vqa", *few, *(["--curve"] if curve else [])])
    easy_vqa.main()
    printed = capsys.readouterr().out
    share = r"\d+\.\d\d% \(\d+\.\d\d% to \d+\.\d\d%\)"
    if curve:
        assert re.search(rf"\| projection \| 2 \| {share} \| \d+\.\d \|", printed)
    else:
        assert "recipe seeing (rank 16), max_steps 2000" in printed
        assert re.search(rf"shapes +20 questions +{share}", printed)
        assert "yes/no" in printed
