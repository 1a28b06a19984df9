"""Workspaces on miniatures that a whole session shares."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.workspace import Workspace


@contextmanager
def shared_workspace(
    load_shared: Callable[[str], LoadedModel], store: Path | None, models: Any = "mini", **options: Any
) -> Iterator[Workspace]:
    """A workspace whose bases are those of the session; they are plain again afterwards."""
    workspace = Workspace(models, store=store, load=lambda entry: load_shared(entry.name), **options)
    yield workspace
    workspace.bases.clear()
    assert not workspace.bases.loaded, "a base is still leased"
