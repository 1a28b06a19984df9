"""Which stored adapter is meant: by its name, by a part of it, or by words. No torch.

Adapters of one base are often called by a plain name, ``counting``; where several bases share a store, by that of the
base and theirs, ``blip2-opt-mini.counting``. People type either.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from lorax_vlm.adapters.manifest import Manifest
from lorax_vlm.adapters.names import split_name
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterNotFound, AmbiguousAdapter, LoraxError
from lorax_vlm.models.catalog import list_models
from lorax_vlm.skills import is_meant
from lorax_vlm.types import require_text, require_texts


def choose_name(
    asked: str, names: Sequence[str], base_of: Callable[[str], str | None], model: str | None, place: str
) -> str:
    """The stored name that is meant by a plain or a full one.

    Args:
        asked: What somebody typed, without a version.
        names: All stored names.
        base_of: What a stored adapter's manifest calls its base; None where it does not say.
        model: Only adapters of this base are meant, if there are any: a catalogue name, a key, a hub id or a folder.
        place: Of the store, for errors.

    Raises:
        AdapterNotFound: None is meant.
        AmbiguousAdapter: Several are.
    """
    bases = {
        name: plain_base_name(base_of(name))
        for name in names
        if name == asked or name.endswith(f".{asked}") or asked.endswith(f".{name}")
    }
    meant = [name for name, base in bases.items() if asked in (name, f"{base}.{name}") or name == f"{base}.{asked}"]
    if model is not None:
        wanted = plain_base_name(model)
        # One of another base is refused where it is used, by name and with what differs.
        meant = [name for name in meant if bases[name] == wanted] or [name for name in meant if name == asked]
    if asked in meant:
        return asked
    if not meant:
        raise AdapterNotFound(asked, place, names)
    if len(meant) > 1:
        raise AmbiguousAdapter(asked, place, meant)
    return meant[0]


def resolve_name(
    name: str, names: Sequence[str], get: Callable[[str], StoredAdapter], model: str | None, place: str
) -> tuple[str, dict[str, StoredAdapter]]:
    """The stored name that is meant, with its version, and what was read of those that might be, as they are in use.

    Args:
        name: What somebody typed.
        names: All stored names.
        get: Reads an adapter.
        model: As for ``choose_name``.
        place: As for ``choose_name``.

    Raises:
        AdapterError: As ``choose_name``, or ``name`` cannot be one.
    """
    found: dict[str, StoredAdapter] = {}

    def base_of(candidate: str) -> str | None:
        try:
            found[candidate] = get(candidate)
        except LoraxError:  # damaged, or removed meanwhile: said where it is used
            return None
        base = found[candidate].manifest.base
        return base.name if base is not None else None

    plain, at, version = split_name(name)
    return choose_name(plain, names, base_of, model, place) + at + version, found


def plain_base_name(model: str | None) -> str | None:
    """What the names of adapters begin with for a base: its name in the catalogue, else the last part of its own."""
    if model is None:
        return None
    known = next((row.name for row in list_models() if model in (row.name, row.key, row.source)), None)
    return known or model.rstrip("/").rsplit("/", 1)[-1]


def identity_of(model: str) -> str:
    """What manifests call a base: of one in the catalogue by its name, key or hub id; of any other what is given."""
    known = (row.identity for row in list_models() if model in (row.name, row.key, row.source))
    return next(known, model)


def matching(
    adapters: Iterable[StoredAdapter],
    text: str = "",
    *,
    base: str | None = None,
    task: str | None = None,
    tags: Sequence[str] = (),
    components: Mapping[str, str] | None = None,
) -> list[StoredAdapter]:
    """Those of some adapters that are looked for; see ``AdapterStore.search``.

    Raises:
        UsageError: ``text`` or a tag is no text.
    """
    require_text("text", text)
    require_texts("tags", tags)
    words, wanted = text.casefold().split(), None if base is None else identity_of(base)

    def is_for(manifest: Manifest) -> bool:
        return wanted is None or (manifest.base is not None and manifest.base.is_of(wanted, components))

    return [
        adapter
        for adapter in adapters
        if all(word in describe_in_words(adapter.name, adapter.manifest, adapter.tags) for word in words)
        and is_for(adapter.manifest)
        and (task is None or is_meant(adapter.manifest.skill, task))
        and set(tags) <= set(adapter.tags)
    ]


def describe_in_words(name: str, manifest: Manifest, tags: Sequence[str]) -> str:
    """What words are looked for in, without capitals."""
    base = manifest.base.name if manifest.base else ""
    does = str(manifest.skill) if manifest.skill else ""
    parts = [name, does, base, str(manifest.training.get("data", "")), *tags]
    return " ".join(parts).casefold()
