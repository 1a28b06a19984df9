"""A joint run in a process of its own, for several of them: ``torchrun -m tests.training.joint_run BASE FOLDER``."""

import dataclasses
import os
import sys
from pathlib import Path

from lorax_vlm.models.loading import LoadedModel, load_model
from lorax_vlm.settings import process_rank
from lorax_vlm.training.joint import train_adapters
from lorax_vlm.training.joint_trainer import JointTrainer
from lorax_vlm.training.students import AdapterPlan
from tests.training.test_joint import make_plans


def uneven_plans(base: LoadedModel) -> list[AdapterPlan]:
    """Batches that two processes cannot share evenly, some of a single row."""
    one, two = make_plans(base)
    return [one, dataclasses.replace(two, config=dataclasses.replace(two.config, batch_size=1))]


def main() -> None:
    """Train uneven plans; with ``DIE_AT_STEP`` the second process dies there."""
    base = load_model(sys.argv[1], dtype="float32")
    base.model.double()
    last_step = int(os.environ.get("DIE_AT_STEP", "-1"))
    original = JointTrainer.training_step

    def training_step(self, *arguments):
        if self.state.global_step == last_step and process_rank() == 1:
            os._exit(1)
        return original(self, *arguments)

    JointTrainer.training_step = training_step
    train_adapters(base, uneven_plans(base), Path(sys.argv[2]), progress=False)


if __name__ == "__main__":
    main()
