"""Trainings that are interrupted at a step."""

import pytest

from lorax_vlm.training.trainer import AdapterTrainer


def interrupt(
    patch: pytest.MonkeyPatch,
    after_step: int,
    error: type[BaseException] = KeyboardInterrupt,
    trainer: type[AdapterTrainer] = AdapterTrainer,
) -> None:
    """Let every training raise an error in the place of the step after one."""
    original = trainer.training_step

    def step(self, *given, **named):
        if self.state.global_step == after_step:
            raise error
        return original(self, *given, **named)

    patch.setattr(trainer, "training_step", step)
