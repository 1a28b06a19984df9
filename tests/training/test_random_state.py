"""Trainings draw from the process's generators one at a time, and none waits for itself."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorax_vlm.adapters.recipe import get_recipe
from lorax_vlm.data.examples import DataSplits, answered
from lorax_vlm.errors import TrainingError
from lorax_vlm.training.config import TrainConfig
from lorax_vlm.training.copies import write_untrained_adapter
from lorax_vlm.training.random_state import preserved_random_state
from lorax_vlm.training.students import AdapterPlan
from lorax_vlm.training.trainer import train_adapter


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_callers_generators_go_on_as_if_nothing_was_drawn() -> None:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = [drawn(), drawn()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = drawn()
    with preserved_random_state():
        drawn()
    assert [first, drawn()] == expected


def test_a_training_inside_another_one_is_refused_and_another_threads_waits() -> None:
    done = threading.Event()

    def beside() -> None:
        with preserved_random_state():
            done.set()

    thread = threading.Thread(target=beside, daemon=True)
    with preserved_random_state():
        thread.start()
        with pytest.raises(TrainingError, match="inside another one"), preserved_random_state():
            pass
        assert not done.wait(0.1)
    assert done.wait(30)
    thread.join()
    with preserved_random_state():
        pass


@pytest.mark.timeout(120)
def test_data_whose_image_trains_end_the_training(load_shared, tmp_path: Path) -> None:
    vilt = load_shared("vilt-mini")

    def train_meanwhile() -> Image.Image:
        write_untrained_adapter(vilt, get_recipe("light"), tmp_path / "inner")
        return Image.new("RGB", (64, 64))

    examples = [answered(train_meanwhile, "What color is it?", ["black"], str(number)) for number in range(2)]
    config = TrainConfig(max_steps=1, batch_size=1, eval_every=1)
    with pytest.raises(TrainingError, match="inside another one"):
        train_adapter(
            vilt,
            AdapterPlan("adapter", get_recipe("light"), DataSplits(examples, examples, "two"), config),
            tmp_path / "run",
            progress=False,
        )
