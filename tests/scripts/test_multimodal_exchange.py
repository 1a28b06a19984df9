"""The third front door, run as a person runs it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.scripts_for_tests import run_script

run = partial(run_script, "multimodal_exchange.py")


@pytest.mark.slow
def test_the_demonstration_in_a_few_steps(tmp_path: Path) -> None:
    done = run("--steps", 2, "--complexity", "light", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in (
        "blip2-flan-mini.image_caption: captions, detailed, 200 examples",
        "loaded as blip2-flan-mini.image_caption.copy",
        "blip2-flan-mini.image_caption: blip2-flan-mini -> blip2-opt-mini",
        "blip2-opt-mini.reasoning: blip2-opt-mini -> blip2-flan-mini",
        "blip2-opt-mini.reasoning: blip2-opt-mini -> vilt-mini: distilled-mapped",
        "Which adapter belongs to which model?",
        "Wrote runs/exchange.html",
    ):
        assert expected in done.stdout
    page = (tmp_path / "runs" / "exchange.html").read_text(encoding="utf-8")
    assert "Transfers" in page
    assert "http" not in page.replace("http-equiv", ""), "it needs nothing else"


def test_errors_are_one_message(tmp_path: Path, run_here: Callable[..., Any]) -> None:
    done = run_here("multimodal_exchange.py", "--image", "missing.png", "--steps", 1, "--complexity", "light")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImageError")
    assert not (tmp_path / "home" / "runs").exists(), "found before any training"
    assert "Traceback" not in done.stderr
