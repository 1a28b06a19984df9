"""The first front door, run as a person runs it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lorax_vlm.data.scenes import iterate_scenes
from tests.scripts_for_tests import run_script

run = partial(run_script, "blip2_captioning.py")


@pytest.mark.slow
def test_the_demonstration_in_a_few_steps(tmp_path: Path) -> None:
    done = run("--steps", 3, "--styles", "concise", "detailed", "--recipe", "light", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "concise_captions" in done.stdout
    assert "300 unseen scenes" in done.stdout
    assert (tmp_path / "runs/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_path_on_own_images(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    folder = tmp_path / "data" / "creative"
    folder.mkdir(parents=True)
    rows = []
    for scene in iterate_scenes("train", 8):
        scene.image.save(folder / f"{scene.seed}.png")
        rows.append(f'{{"file_name": "{scene.seed}.png", "caption": "{scene.caption("creative")}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    options = ("--styles", "creative", "--image", folder / "0.png", "--scenes", 5)
    done = run_here("blip2_captioning.py", *options, "--data", "data", "--steps", 2, "--out", "s.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").is_file()
    again = run_here("blip2_captioning.py", *options, "--no-train")
    assert again.returncode == 0, again.stderr
    assert "creative_captions" in again.stdout


def test_errors_are_one_message(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    done = run_here("blip2_captioning.py", "--image", "gone.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImageError: Cannot use image 'gone.png'")
    assert "Traceback" not in done.stderr
