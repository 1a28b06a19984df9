"""Taking an adapter into the store: checked against its base, and its record completed."""

import datetime
import logging
from dataclasses import replace as replaced
from pathlib import Path

from lorax_vlm.adapters.identity import describe_adapted
from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.manifest import BaseIdentity, Manifest, read_manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.ownership import owner_of, require_free
from lorax_vlm.adapters.portable import portable
from lorax_vlm.adapters.prefixed import with_prefix
from lorax_vlm.adapters.recipe import count_by_component
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.versions import package_versions

logger = logging.getLogger(__name__)
_RECORDED_PACKAGES = ("lorax-vlm", "transformers", "peft", "torch")


def made_on(engine: BaseEngine, manifest: Manifest) -> Manifest:
    """The record of an adapter made on a base now, with base, versions and time; it names no folder of this machine."""
    base, description = engine.base, engine.base.description
    identity = BaseIdentity(
        name=engine.entry.identity,
        family=base.family.name,
        configuration=dict(description.configuration),
        components=base.fingerprint.components,
        preparation=dict(description.preparation),
        revision=base.revision,
        quantization=base.placement.quantization,
        dtype=base.placement.dtype,
    )
    return replaced(
        manifest,
        base=identity,
        training=portable(manifest.training),
        lineage=tuple(replaced(parent, parameters=portable(parent.parameters)) for parent in manifest.lineage),
        licence=manifest.licence or engine.entry.licence,
        versions=package_versions(_RECORDED_PACKAGES),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def keep(
    engine: BaseEngine, folder: Path, manifest: Manifest, name: str | None = None, *, replace: bool = False
) -> StoredAdapter:
    """Check a PEFT directory against its base and take it into the store; see ``addition``.

    Args:
        engine: Of the base.
        folder: The directory.
        manifest: Of the adapter.
        name: In the store. None: the manifest's.
        replace: Make a new version when the name exists.

    Raises:
        AdapterExists: The name is taken and ``replace`` is false.
        AdapterError: It is damaged or does not fit; nothing is stored.
    """
    return engine.store.add_all([addition(engine, folder, manifest, name, replace=replace)], replace=replace)[0]


def addition(
    engine: BaseEngine, folder: Path, manifest: Manifest, name: str | None = None, *, replace: bool = False
) -> Addition:
    """What ``keep`` would store: the directory's files, read once and checked against the base.

    What the manifest does not say yet is added: the weights it changes, and what it answers to a fixed input.

    Raises:
        AdapterError: As ``keep``.
    """
    name = name or manifest.name
    owner = owner_of(engine.entry, engine.base.known_components)
    require_free(engine.store, owner, name, replace=replace)
    adapter, report = engine.check(name, folder, manifest)
    for reason in report.reasons:
        logger.warning("Adapter %r: %s.", name, reason)
    sites = adapter.files.sites
    manifest = replaced(manifest, rank=max(adapter.files.ranks), sites=count_by_component(sites))
    if manifest.base is not None and not manifest.base.adapted:
        adapted = describe_adapted(engine.base.fingerprint, sites)
        manifest = replaced(manifest, base=replaced(manifest.base, adapted=adapted))
    if manifest.canary is None and manifest.base is not None:
        manifest = replaced(manifest, canary=engine.take_canary(adapter, manifest))
    return Addition(name, adapter, manifest)


def take_in(
    engine: BaseEngine,
    folder: Path,
    name: str | None = None,
    *,
    replace: bool = False,
    prefix: str | None = None,
) -> StoredAdapter:
    """Take a directory saved here or by plain PEFT into the store.

    Args:
        engine: Of the base.
        folder: PEFT directory, with or without a manifest.
        name: Name in the store. None: the manifest's, or the folder's.
        replace: Make a new version when the name exists.
        prefix: What to put before the names of all modules, for LoRA that was made for a part of the base alone, such
            as ``language_model.``.

    Raises:
        UsageError: ``prefix`` is no name, or the adapter says itself what it belongs to.
        AdapterExists: The name is taken and ``replace`` is false.
        AdapterError: It is damaged, unsupported, untrained or for another base; nothing is stored.
    """
    called = folder.name if name is None else require_adapter_name(name)
    if prefix is not None:
        with with_prefix(folder, called, prefix) as renamed:
            return take_in(engine, renamed, called, replace=replace)
    manifest = read_manifest(folder, called)
    return keep(engine, folder, manifest, name, replace=replace)
