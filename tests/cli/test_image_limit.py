"""``train`` and ``doctor`` say when the image path seems to be what holds an adapter back, and only then."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from lorax_vlm.training.probe import FEWEST, STALLED, ProbedQuestion, ProbeReport
from tests.images_for_tests import unseen_lines

ADVICE = "the image path seems to be the limit; try --sites vision,qformer,projection"
FEW = ("--steps", 2, "--batch-size", 16, "--eval-every", 2)


def write(folder: Path, rows: Sequence[tuple[Image.Image, str, str]]) -> Path:
    """A folder of images, questions and answers."""
    folder.mkdir()
    lines = []
    for number, (image, question, answer) in enumerate(rows):
        image.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "question": question, "answer": answer}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """What the base does not see."""
    return write(tmp_path / "unseen", [(image, "Is it long?", answer) for image, answer in unseen_lines(60)])


@pytest.fixture
def seen(tmp_path: Path) -> Path:
    """What the base sees and has no word for: a run of two steps stalls here as well, but not for want of eyes."""
    colours = {"dax": (200, 30, 30), "wug": (30, 30, 200), "blick": (230, 230, 90)}
    names = [*colours] * 22
    rows = [(Image.new("RGB", (32, 32 + i), colours[name]), "Which is it?", name) for i, name in enumerate(names)]
    return write(tmp_path / "seen", rows)


def test_train_says_that_the_image_path_limits(run, unseen: Path) -> None:
    printed = run("train", "lines", "--task", "length", "--data", unseen, "--recipe", "light", *FEW)
    assert "training stalled at a loss of " in printed
    assert ADVICE in printed
    assert "of 'Is it long?' (" in printed


def test_train_does_not_say_so_of_a_run_that_adapts_the_image_path(run, unseen: Path) -> None:
    printed = run("train", "lines", "--task", "length", "--data", unseen, *FEW)
    assert "6 vision layers" in printed
    assert ADVICE not in printed


def test_train_does_not_say_so_of_what_the_image_path_hands_on(run, seen: Path) -> None:
    given = ("--task", "kinds", "--data", seen, "--recipe", "light", *FEW)
    asked = json.loads(run("train", "kinds", *given, "--json"))
    assert asked["manifest"]["training"]["last_training_loss"] > STALLED
    (question,) = asked["image_path"]["questions"]
    assert question["read"] > 0.95
    assert question["count"] >= FEWEST
    printed = run("train", "kinds", *given, "--replace")
    assert "stalled" not in printed
    assert ADVICE not in printed


def test_doctor_reads_the_image_path(run, unseen: Path, seen: Path) -> None:
    printed = run("doctor", "--data", unseen, "--task", "length")
    assert "read off the frozen image path: " in printed
    assert "train adapts it as well by default (recipe seeing)" in printed
    printed = run("doctor", "--data", seen, "--task", "kinds")
    assert "read off the frozen image path: " in printed
    assert "try --sites" not in printed


def test_advice_is_given_only_where_the_path_limits() -> None:
    blind = ProbeReport((ProbedQuestion("Is it long?", 100, 0.5, 0.6),))
    assert blind.advice() == [
        f"{ADVICE},lm",
        "read off the frozen image path: 60 % of 'Is it long?' (100 images; most frequent answer 50 %)",
    ]
    assert ProbeReport((ProbedQuestion("Is it long?", 100, 0.5, 0.99),)).advice() == []
