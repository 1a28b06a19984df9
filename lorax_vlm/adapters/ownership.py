"""Whose adapters are whose: those of a base in a store, and whether a name is free for one of it. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterExists, DamagedAdapter
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.local import known_components
from lorax_vlm.types import require_flag


@dataclass(frozen=True)
class Owner:
    """A base, as far as it matters whose adapters are whose."""

    identity: str
    """What manifests call it."""
    components: Mapping[str, str] | None
    """Digests of its weights, which tell it from others of its name. None: they were never read."""


def owner_of(entry: CatalogEntry, components: Mapping[str, str] | None = None) -> Owner:
    """A base as owner. ``components`` are digests of its weights in memory; None: those read before, if any."""
    return Owner(entry.identity, components if components is not None else known_components(entry))


def adapters_of(store: AdapterStore, owner: Owner) -> list[StoredAdapter]:
    """The store's adapters that were made for a base, and those that do not say for which."""
    owners = [(adapter, adapter.manifest.base) for adapter in store.list()[0]]
    return [a for a, base in owners if base is None or base.is_of(owner.identity, owner.components)]


def require_free(
    store: AdapterStore, owner: Owner, name: str, *, replace: bool, replace_untrained: bool = False
) -> None:
    """Raise ``AdapterExists`` when a name is taken, by another base even when it may be replaced.

    Args:
        store: Where the adapter would go.
        owner: The base that it would be for.
        name: In the store.
        replace: A new version may be made, also of one that cannot be read any more.
        replace_untrained: An adapter that was never trained may be replaced in any case.
    """
    require_flag("replace", replace)
    if require_adapter_name(name) not in store:
        return
    try:
        manifest = store.get(name).manifest
    except DamagedAdapter:
        if not replace:
            raise
        return
    base = manifest.base
    if base is not None and not base.is_of(owner.identity, owner.components):
        alike = " of other weights" if base.name == owner.identity else ""
        raise AdapterExists(name, str(store.root), f"{base.name}{alike}")
    if not replace and not (replace_untrained and not manifest.trained):
        raise AdapterExists(name, str(store.root))


def require_storable(store: AdapterStore, owner: Owner, name: str, **allowed: bool) -> None:
    """Find out, before any work, whether its result can be stored under a name; ``allowed`` as for ``require_free``.

    Raises:
        AdapterExists: See ``require_free``.
        PathError: The store cannot be written.
    """
    require_free(store, owner, name, **allowed)
    store.require_writable()
