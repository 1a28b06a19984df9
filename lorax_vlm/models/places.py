"""Where the files of a checkpoint are on this machine. Nothing is loaded or downloaded. No torch."""

from pathlib import Path


def find_folder(source: str) -> Path | None:
    """The folder of a checkpoint: itself, or its copy in the hub's cache; None when it is on the hub only."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # no hub has a repository of that name
        return None
    return Path(found).parent if isinstance(found, str) else None
