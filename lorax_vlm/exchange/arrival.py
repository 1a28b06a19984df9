"""Adapters that come from elsewhere and go there: a PEFT folder, or a ``.lorax`` bundle."""

from pathlib import Path

from lorax_vlm.adapters.manifest import read_manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.ownership import require_free
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import UsageError
from lorax_vlm.paths import named_path
from lorax_vlm.runtime.bases import Bases
from lorax_vlm.sharing.bundle import SUFFIX, pack, receive, unpacked
from lorax_vlm.workshop.intake import take_in


def load_adapter(
    bases: Bases,
    source: str | Path,
    name: str | None = None,
    *,
    base: str | None = None,
    replace: bool = False,
    prefix: str | None = None,
) -> StoredAdapter:
    """Take a folder or a bundle into the store, checked.

    Args:
        bases: The door to the base.
        source: Saved here, or by plain PEFT.
        name: Name in the store. None: its own.
        base: To check it against at once. It is needed for a folder without a manifest, which does not say which base
            it is for.
        replace: Make a new version when the name exists.
        prefix: As for ``intake.take_in``; it needs a base.

    Raises:
        UsageError: There is a ``prefix`` and no ``base``.
        AdapterError: It is damaged, unsupported, untrained or for another base; nothing is stored.
    """
    if prefix is not None and base is None:
        raise UsageError("prefix needs the model that the adapter is for: model=NAME.")
    path = named_path("source", source)
    if path.suffix == SUFFIX:
        with unpacked(path) as folder:
            return load_adapter(bases, folder, name, base=base, replace=replace, prefix=prefix)
    if base is None:
        return receive(bases.store, path, name, replace=replace)
    if prefix is None:  # before a base is loaded
        said = read_manifest(path, path.name if name is None else require_adapter_name(name))
        require_free(bases.store, bases.owner(base), name or said.name, replace=replace)
    with bases.use(base) as engine:
        return take_in(engine, path, name, replace=replace, prefix=prefix)


def save_adapter(store: AdapterStore, name: str, target: str | Path) -> Path:
    """Copy an adapter out of the store: a plain PEFT folder with its manifest, or one file called ``....lorax``.

    Raises:
        AdapterNotFound: There is none.
        AdapterExists: There is something at ``target`` already.
    """
    path = named_path("target", target)
    return pack(store.get(name), path) if path.suffix == SUFFIX else store.export(name, path)
