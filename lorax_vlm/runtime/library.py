"""One base and the adapters of one store: kept on disk, attached on first use."""

import dataclasses
import datetime
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from lorax_vlm.adapters.manifest import BaseIdentity, Manifest, read_manifest
from lorax_vlm.adapters.recipe import Recipe, count_by_component
from lorax_vlm.adapters.store import AdapterStore, StoredAdapter, require_adapter_name
from lorax_vlm.errors import AdapterExists
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.loading import LoadedModel
from lorax_vlm.runtime.attached import AttachedAdapters, Attachment
from lorax_vlm.types import Generated, GenerationSettings

logger = logging.getLogger(__name__)
_RECORDED_PACKAGES = ("lorax-vlm", "transformers", "peft", "torch")


class AdapterLibrary:
    """What the store holds, as far as it concerns one base. The base is loaded when it is first needed."""

    def __init__(
        self,
        entry: CatalogEntry,
        load: Callable[[], LoadedModel],
        store: AdapterStore,
        adapter_memory_bytes: int | None = None,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            entry: The base.
            load: Loads it.
            store: Where adapters are kept.
            adapter_memory_bytes: Most memory for adapters; the least recently used leave first. None: no limit.
        """
        self.entry = entry
        self.store = store
        self._load = load
        self._adapter_memory_bytes = adapter_memory_bytes

    @cached_property
    def base(self) -> LoadedModel:
        """The loaded base."""
        return self._load()

    @cached_property
    def _attached(self) -> AttachedAdapters:
        return AttachedAdapters(self.base, lambda name: self.store.get(name).folder, self._adapter_memory_bytes)

    def require(self, name: str | None) -> None:
        """Raise ``AdapterNotFound`` for an unknown name; the base is not loaded for it."""
        if name is not None:
            self.store.get(name)

    def using(self, name: str | None) -> AbstractContextManager[Any]:
        """The model with one adapter in effect, or plain for None; see ``AttachedAdapters.using``."""
        return self.routed([name])

    def routed(self, rows: Sequence[str | None]) -> AbstractContextManager[Any]:
        """The model with an adapter of its own for each row; see ``AttachedAdapters.routed``."""
        for name in rows:
            self.require(name)
        return self._attached.routed(rows)

    def generate(
        self,
        rows: Sequence[str | None],
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        settings: GenerationSettings,
    ) -> list[Generated]:
        """Answer each prompt about its picture, each row with its own adapter; see ``AttachedAdapters.generate``."""
        for name in rows:
            self.require(name)
        return self._attached.generate(rows, pictures, prompts, settings)

    def find(self, name: str | None) -> Attachment | None:
        """The adapter in the store's current version, loaded if it is not in memory; None for the plain base.

        Raises:
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
            AdapterError: It is damaged or does not fit the base.
        """
        self.require(name)
        return None if name is None else self._attached.get(name)

    def release(self) -> None:
        """Let the base go; it is loaded again when it is needed."""
        self.restore_base()
        self.__dict__.pop("_attached", None)
        self.__dict__.pop("base", None)

    def restore_base(self) -> None:
        """Take every adapter off the base; they come back on first use."""
        if "_attached" in self.__dict__:
            self._attached.detach_all()

    def manifest(
        self,
        name: str,
        *,
        task: str,
        style: str,
        recipe: Recipe,
        prompt: str,
        trained: bool,
        training: Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
    ) -> Manifest:
        """The record of an adapter made on this base, now."""
        base = self.base
        identity = BaseIdentity(
            name=self.entry.identity,
            family=base.family.name,
            architecture=base.architecture,
            fingerprint=base.fingerprint,
            revision=base.revision,
            quantization=base.placement.quantization,
            dtype=base.placement.dtype,
        )
        return Manifest(
            name=name,
            task=task,
            style=style,
            base=identity,
            trained=trained,
            recipe=recipe.name,
            prompt=prompt,
            labels=tuple(labels),
            training=training or {},
            versions={package: version(package) for package in _RECORDED_PACKAGES},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def require_free(self, name: str, replace: bool) -> None:
        """Raise ``AdapterExists`` when a name is taken, by another base even when it may be replaced."""
        if require_adapter_name(name) not in self.store:
            return
        if not replace:
            raise AdapterExists(name, str(self.store.root))
        owner = self.store.get(name).manifest.base
        if owner is not None and owner.name != self.entry.identity:
            raise AdapterExists(name, str(self.store.root), owner.name)

    def keep(self, folder: Path, manifest: Manifest, *, replace: bool = False) -> StoredAdapter:
        """Check a PEFT directory against the base and take it into the store.

        Raises:
            AdapterExists: The name is taken and ``replace`` is false.
            AdapterError: It is damaged or does not fit; nothing is stored.
        """
        self.require_free(manifest.name, replace)
        files, report = self._attached.check(manifest.name, folder, manifest)
        for reason in report.reasons:
            logger.warning("Adapter %r: %s.", manifest.name, reason)
        manifest = dataclasses.replace(manifest, rank=max(files.ranks), sites=count_by_component(files.sites))
        return self.store.add(manifest.name, folder, manifest, replace=replace)

    def load(self, folder: Path, name: str | None = None, *, replace: bool = False) -> StoredAdapter:
        """Take a directory saved here or by plain PEFT into the store.

        Args:
            folder: PEFT directory, with or without a manifest.
            name: Name in the store. None: the manifest's, or the folder's.
            replace: Make a new version when the name exists.

        Raises:
            AdapterExists: The name is taken and ``replace`` is false.
            AdapterError: It is damaged, unsupported, untrained or for another base; nothing is stored.
        """
        manifest = read_manifest(folder, name or folder.name)
        manifest = dataclasses.replace(manifest, name=require_adapter_name(name or manifest.name))
        return self.keep(folder, manifest, replace=replace)

    def list(self) -> list[StoredAdapter]:
        """The store's adapters that were made for this base, and those that do not say for which."""
        stored, _ = self.store.list()
        return [a for a in stored if a.manifest.base is None or a.manifest.base.name == self.entry.identity]

    def remove(self, name: str) -> None:
        """Remove an adapter from the store and from the base.

        Raises:
            AdapterNotFound: There is none.
        """
        self.store.remove(name)
        if "_attached" in self.__dict__ and name in self._attached.names:
            self._attached.detach(name)
