"""The process's random generators: of several trainings in its threads one draws at a time."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lorax_vlm.errors import TrainingError

_drawing_alone = threading.Lock()
_own = threading.local()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give the caller's random generators back as they were; the Trainer seeds all of them.

    They belong to the process, so of several trainings in its threads one waits for the other.

    Raises:
        TrainingError: This thread is inside such a block already, and would wait for itself.
    """
    if getattr(_own, "inside", False):
        raise TrainingError(
            "A training was started inside another one, on the same thread, such as by a function that makes an image "
            "of its data. Train one after the other: make what the data need before the training starts."
        )
    with _drawing_alone, kept_random_state():
        _own.inside = True
        try:
            yield
        finally:
            _own.inside = False


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give the random generators back as they were, to whoever draws from them alone."""
    with torch.random.fork_rng():
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
