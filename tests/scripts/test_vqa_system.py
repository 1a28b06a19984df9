"""The second front door, run as a person runs it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.scenes import iterate_scenes
from tests.scripts_for_tests import run_script

run = partial(run_script, "vqa_system.py")


@pytest.mark.slow
def test_the_demonstration_in_a_few_steps(tmp_path: Path) -> None:
    done = run("--steps", 2, "--questions", 20, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for model in ("blip2-opt-mini", "blip2-flan-mini", "instructblip-mini", "vilt-mini"):
        assert model in done.stdout
    assert "counting" in done.stdout
    assert "Done after" in done.stdout


def test_own_images_and_questions(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    folder = tmp_path / "data" / "shapes"
    folder.mkdir(parents=True)
    rows = []
    for scene in iterate_scenes("train", 8):
        scene.image.save(folder / f"{scene.seed}.png")
        kind, question, answer = scene.questions()[0]
        rows.append(
            json.dumps({"file_name": f"{scene.seed}.png", "question": question, "answer": answer, "type": kind})
        )
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    options = ("--model", "vilt", "--tasks", "shapes", "--data", "data", "--steps", 2, "--questions", 5)
    image = folder / "0.png"
    done = run_here("vqa_system.py", *options, "--image", image, "--question", "What color is the background?")
    assert done.returncode == 0, done.stderr
    assert "What color is the background?" in done.stdout
    assert "shapes" in done.stdout


def test_errors_are_one_message(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    done = run_here("vqa_system.py", "--model", "vilt", "--tasks", "singing")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("UsageError: Unknown task 'singing'")
    assert "Traceback" not in done.stderr


def test_an_image_that_is_not_there_is_found_before_any_training(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    done = run_here("vqa_system.py", "--image", "gone.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImageError: Cannot use image 'gone.png'")
    assert not (tmp_path / "home" / "runs").exists()
