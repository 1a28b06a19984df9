"""Where things are kept. Environment variables are read here and nowhere else. No torch."""

import os
from pathlib import Path

import platformdirs

from lorax_vlm.errors import UsageError
from lorax_vlm.foreign import quoted

HOME_VARIABLE = "LORAX_VLM_HOME"


def home_dir() -> Path:
    """``LORAX_VLM_HOME``, or the platform's data folder for this program."""
    chosen = os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("lorax-vlm"))


def store_dir(root: str | Path | None = None) -> Path:
    """An adapter store: a folder that was named, or the default one.

    Raises:
        UsageError: ``root`` names no folder.
    """
    if not isinstance(root, str | Path | None):
        raise UsageError(f"store must be a folder, got {quoted(root)}.")
    return Path(root).expanduser() if root is not None else home_dir() / "adapters"


def features_dir() -> Path:
    """Encoded images, kept between training runs; may be removed at any time."""
    return home_dir() / "features"


def fingerprints_dir() -> Path:
    """What is known of the weights of bases; may be removed at any time."""
    return home_dir() / "fingerprints"


def downloads_dir() -> Path:
    """What has arrived of files that are being fetched; may be removed at any time."""
    return home_dir() / "downloads"


def outputs_dir() -> Path:
    """What outputs behind addresses hold, for jobs that work on them; may be removed when none runs."""
    return home_dir() / "outputs"


def left_out_dir() -> Path:
    """Lists of the rows of data that were left out, because they were malformed; may be removed at any time."""
    return home_dir() / "left_out"


def commands_dir() -> Path:
    """Long commands that were given, and what became of them; may be removed at any time."""
    return home_dir() / "commands"


def process_count() -> int:
    """Processes of this run, as ``torchrun`` and ``accelerate launch`` say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """Number of this process among all; 0 stores and prints."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def sharding_requested() -> bool:
    """Whether ``accelerate launch`` asks for the base to be split over processes (FSDP, DeepSpeed)."""
    return any(os.environ.get(name) == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def runs_dir() -> Path:
    """Training runs: checkpoints, logs and curves."""
    return home_dir() / "runs"
