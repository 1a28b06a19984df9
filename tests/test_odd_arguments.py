"""Arguments of another type than is meant, from Python: refused by name, whatever they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorax_vlm.captioning import BLIP2CaptioningSystem
from lorax_vlm.data.examples import DataSplits, Example
from lorax_vlm.data.scenes import Scene
from lorax_vlm.errors import DataError, LoraxError
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.vqa import VQASystem

NAMES: list[Any] = [5, b"one", Path("one"), True, ["one"], {"one"}, {"one": 1}, np.array(["one"]), np.zeros(2)]
COLOR = "What color is the background?"


@pytest.mark.parametrize("name", NAMES, ids=lambda name: type(name).__name__)
def test_what_is_no_name_of_an_adapter(
    name: Any, mini: LoadedModel, system: BLIP2CaptioningSystem, scenes: list[Scene], tmp_path: Path
) -> None:
    answering = VQASystem("mini", store=tmp_path / "store")
    image = scenes[0].image
    calls: list[Callable[[], object]] = [
        lambda: system.caption_image(image, name),
        lambda: system.caption_images([image], name),
        lambda: system.compare_captioning_styles(image, [name]),
        lambda: system.evaluate_adapter(name, count=1),
        lambda: answering.answer_questions([image], [COLOR], "blip2_opt", [name]),
        lambda: system.store.resolve(name),
        lambda: system.store.get(name),
    ]
    for call in calls:
        with pytest.raises(LoraxError):
            call()


@pytest.mark.parametrize("models", [None, 5, b"mini", Path("mini"), True, ["mini"]], ids=repr)
def test_what_are_no_models(models: Any) -> None:
    with pytest.raises(LoraxError, match="models must be"):
        VQASystem(models)


@pytest.mark.parametrize("store", [5, b"store", ["store"], True], ids=repr)
def test_what_is_no_store(store: Any) -> None:
    for make in (lambda: VQASystem("mini", store=store), lambda: BLIP2CaptioningSystem("blip2-opt-mini", store=store)):
        with pytest.raises(LoraxError, match="store must be a folder"):
            make()


def test_captions_for_a_model_that_only_chooses(scenes: list[Scene], tmp_path: Path) -> None:
    """Nobody gave a task, and it has no styles: the message says neither."""
    captions = [Example(scene.image, scene.caption("plain"), "") for scene in scenes]
    system = VQASystem("mini", store=tmp_path / "store")
    with pytest.raises(DataError, match="vilt-mini answers questions and cannot write captions"):
        system.training_data("vilt", "x", DataSplits(captions[:6], captions[6:], "photos"))
