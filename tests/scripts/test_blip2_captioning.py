"""The first front door, run as a person runs it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from lorax_vlm.data.scenes import iterate_scenes

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_demonstration_in_a_few_steps(captioning_script: Run, tmp_path: Path) -> None:
    done = captioning_script("--steps", 3, "--styles", "concise", "detailed", "--recipe", "light")
    assert done.returncode == 0, done.stderr
    assert "concise_captions" in done.stdout
    assert "300 unseen scenes" in done.stdout
    assert (tmp_path / "runs/comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_path_on_own_images(captioning_script: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "creative"
    folder.mkdir(parents=True)
    rows = []
    for scene in iterate_scenes("train", 8):
        scene.image.save(folder / f"{scene.seed}.png")
        rows.append(f'{{"file_name": "{scene.seed}.png", "caption": "{scene.caption("creative")}"}}')
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    image = folder / "0.png"
    done = captioning_script("--data", "data", "--styles", "creative", "--image", image, "--steps", 2, "--out", "s.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.png").is_file()
    again = captioning_script("--no-train", "--styles", "creative", "--image", image)
    assert again.returncode == 0, again.stderr
    assert "creative_captions" in again.stdout


def test_errors_are_one_message(captioning_script: Run, tmp_path: Path) -> None:
    done = captioning_script("--image", "gone.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImageError: Cannot use image 'gone.png'")
    assert "Traceback" not in done.stderr
