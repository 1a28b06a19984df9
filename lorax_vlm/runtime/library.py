"""One base and the adapters of one store: kept on disk, attached on first use."""

import datetime
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any, cast

from PIL import Image

from lorax_vlm.adapters.files import AdapterBytes
from lorax_vlm.adapters.identity import describe_adapted
from lorax_vlm.adapters.incoming import Addition
from lorax_vlm.adapters.manifest import BaseIdentity, Manifest, Parent, read_manifest
from lorax_vlm.adapters.names import require_adapter_name
from lorax_vlm.adapters.portable import portable
from lorax_vlm.adapters.prefixed import with_prefix
from lorax_vlm.adapters.recipe import count_by_component
from lorax_vlm.adapters.seen import SeenImages, read_seen
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.adapters.stored import StoredAdapter
from lorax_vlm.errors import AdapterExists, DamagedAdapter
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.loading import LoadedModel, describe_model
from lorax_vlm.models.local import known_components
from lorax_vlm.runtime.attached import AttachedAdapters, Attachment
from lorax_vlm.runtime.canary import CanaryReport, check_canary, take_canary
from lorax_vlm.skills import Skill
from lorax_vlm.types import Generated, GenerationSettings, require_flag, require_whole
from lorax_vlm.versions import package_versions

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

        Raises:
            UsageError: ``adapter_memory_bytes`` is no number of bytes.
        """
        if adapter_memory_bytes is not None:
            require_whole("adapter_memory_bytes", adapter_memory_bytes, 1)
        self.entry = entry
        self.store = store
        self._load = load
        self._adapter_memory_bytes = adapter_memory_bytes
        self._lock = threading.RLock()
        self._trials: set[str] = set()
        self._trial_numbers = itertools.count()

    @property
    def base(self) -> LoadedModel:
        """The loaded base."""
        return cast(LoadedModel, self._once("base", self._load_base))

    def _load_base(self) -> LoadedModel:
        loaded = self._load()
        self.entry = loaded.entry  # only loading tells the family, and the prompts, of a checkpoint that is not listed
        return loaded

    @property
    def _attached(self) -> AttachedAdapters:
        return cast(AttachedAdapters, self._once("_attached", self._attach))

    def _attach(self) -> AttachedAdapters:
        return AttachedAdapters(
            self.base, lambda name: self.store.get(name).folder, self._adapter_memory_bytes, self._read
        )

    def _once(self, name: str, make: Callable[[], object]) -> object:
        """What is made on first use; of several threads the others wait for it."""
        with self._lock:
            if name not in self.__dict__:
                self.__dict__[name] = make()
            return self.__dict__[name]

    def _read(self, name: str) -> tuple[Manifest, AdapterBytes]:
        stored, adapter = self.store.read_bytes(name)
        return stored.manifest, adapter

    def resolve(self, name: str) -> str:
        """The stored name of an adapter for this base that is called by it or by its own; see ``AdapterStore.resolve``.

        Raises:
            AdapterNotFound: None is meant.
            AmbiguousAdapter: Several are.
        """
        if isinstance(name, str) and name in self._trials:
            return name
        return self.store.resolve(name, self.entry.name)

    def require(self, name: str | None) -> None:
        """Raise ``AdapterNotFound`` for an unknown name; the base is not loaded for it."""
        if name is not None and (resolved := self.resolve(name)) not in self._trials:
            self.store.get(resolved)

    def _resolved(self, rows: Sequence[str | None]) -> list[str | None]:
        found: dict[str, str] = {}
        for name in rows:
            if name is not None and (not isinstance(name, str) or name not in found):
                self.require(name)
                found[name] = self.resolve(name)
        return [found[name] if name is not None else None for name in rows]

    def describe(self) -> BaseDescription:
        """The base with its fingerprint, without loading it; of a large one all weights are read the first time."""
        if "base" in self.__dict__:
            return replaced(self.base.description, fingerprint=self.base.fingerprint)
        return describe_model(self.entry)

    @contextmanager
    def trial(self, folder: Path, labels: Sequence[str] = ()) -> Iterator[str]:
        """Run a block in which a PEFT directory outside the store can be used by the name that is yielded.

        Args:
            folder: The directory.
            labels: The answers of an own head.

        Raises:
            AdapterError: It is damaged or does not fit the base.
        """
        name = f"trial of {folder.name} {next(self._trial_numbers)}"
        manifest = Manifest(name=name, skill=None, base=None, trained=True, labels=tuple(labels))
        # What is tried may turn out to do nothing: its score will say so.
        manifest = replaced(manifest, training={"best_step": 0})
        self._attached.attach(name, folder, manifest)
        self._trials.add(name)
        try:
            yield name
        finally:
            self._trials.discard(name)
            self._attached.detach(name)

    def using(self, name: str | None) -> AbstractContextManager[Any]:
        """The model with one adapter in effect, or plain for None; see ``AttachedAdapters.using``."""
        return self.routed([name])

    def routed(self, rows: Sequence[str | None]) -> AbstractContextManager[Any]:
        """The model with an adapter of its own for each row; see ``AttachedAdapters.routed``."""
        return self._attached.routed(self._resolved(rows))

    def generate(
        self,
        rows: Sequence[str | None],
        pictures: Sequence[Image.Image],
        prompts: Sequence[str],
        settings: GenerationSettings,
    ) -> list[Generated]:
        """Answer each prompt about its picture, each row with its own adapter; see ``AttachedAdapters.generate``."""
        return self._attached.generate(self._resolved(rows), pictures, prompts, settings)

    def find(self, name: str | None) -> Attachment | None:
        """The adapter in the store's current version, loaded if it is not in memory; None for the plain base.

        Raises:
            AdapterNotFound: There is no such adapter; an unknown name never means the base.
            AdapterError: It is damaged or does not fit the base.
        """
        self.require(name)
        return None if name is None else self._attached.get(self.resolve(name))

    def check_canary(self, folder: Path, manifest: Manifest) -> CanaryReport | None:
        """Ask an adapter's directory what it was asked when it was stored; None when nothing was recorded.

        Raises:
            AdapterError: It is damaged or does not fit the base.
        """
        return check_canary(self._attached, folder, manifest)

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
        skill: Skill | None,
        recipe: str,
        prompt: str,
        trained: bool,
        generation: GenerationSettings | None = None,
        training: Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
        lineage: Sequence[Parent] = (),
        licence: str = "",
    ) -> Manifest:
        """The record of an adapter made on this base, now. It names no folder of this machine."""
        base, description = self.base, self.base.description
        identity = BaseIdentity(
            name=self.entry.identity,
            family=base.family.name,
            configuration=dict(description.configuration),
            components=base.fingerprint.components,
            preparation=dict(description.preparation),
            revision=base.revision,
            quantization=base.placement.quantization,
            dtype=base.placement.dtype,
        )
        return Manifest(
            name=name,
            skill=skill,
            base=identity,
            trained=trained,
            recipe=recipe,
            prompt=prompt,
            generation=generation,
            labels=tuple(labels),
            training=portable(dict(training or {})),
            lineage=tuple(replaced(parent, parameters=portable(parent.parameters)) for parent in lineage),
            licence=licence or self.entry.licence,
            versions=package_versions(_RECORDED_PACKAGES),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def require_free(self, name: str, replace: bool) -> None:
        """Raise ``AdapterExists`` when a name is taken, by another base even when it may be replaced."""
        require_flag("replace", replace)
        if require_adapter_name(name) not in self.store:
            return
        try:
            owner = self.store.get(name).manifest.base
        except DamagedAdapter:  # a sound version may take its place
            owner = None
        if owner is not None and not self._is_this(owner):
            alike = " of other weights" if owner.name == self.entry.identity else ""
            raise AdapterExists(name, str(self.store.root), f"{owner.name}{alike}")
        if not replace:
            raise AdapterExists(name, str(self.store.root))

    def require_storable(self, name: str, replace: bool) -> None:
        """Find out, before any work, whether its result can be stored under a name.

        Raises:
            AdapterExists: See ``require_free``.
            PathError: The store cannot be written.
        """
        self.require_free(name, replace)
        self.store.require_writable()

    def _is_this(self, identity: BaseIdentity) -> bool:
        """Whether it may be this base: its name, and its weights where they are known here."""
        return identity.is_of(self.entry.identity, self.known_components)

    @property
    def known_components(self) -> Mapping[str, str] | None:
        """Digests of the base's weights, where they have been read before; None where not. Nothing is loaded."""
        if "base" in self.__dict__ and "fingerprint" in self.base.__dict__:
            return self.base.fingerprint.components
        return known_components(self.entry)

    def keep(
        self, folder: Path, manifest: Manifest, name: str | None = None, *, replace: bool = False
    ) -> StoredAdapter:
        """Check a PEFT directory against the base and take it into the store; see ``addition``.

        Args:
            folder: The directory.
            manifest: Of the adapter.
            name: In the store. None: the manifest's.
            replace: Make a new version when the name exists.

        Raises:
            AdapterExists: The name is taken and ``replace`` is false.
            AdapterError: It is damaged or does not fit; nothing is stored.
        """
        return self.store.add_all([self.addition(folder, manifest, name, replace=replace)], replace=replace)[0]

    def addition(self, folder: Path, manifest: Manifest, name: str | None = None, *, replace: bool = False) -> Addition:
        """What ``keep`` would store: the directory's files, read once and checked against the base.

        What the manifest does not say yet is added: the weights it changes, and what it answers to a fixed input.

        Raises:
            AdapterError: As ``keep``.
        """
        name = name or manifest.name
        self.require_free(name, replace)
        adapter, report = self._attached.check(name, folder, manifest)
        for reason in report.reasons:
            logger.warning("Adapter %r: %s.", name, reason)
        sites = adapter.files.sites
        manifest = replaced(manifest, rank=max(adapter.files.ranks), sites=count_by_component(sites))
        if manifest.base is not None and not manifest.base.adapted:
            adapted = describe_adapted(self.base.fingerprint, sites)
            manifest = replaced(manifest, base=replaced(manifest.base, adapted=adapted))
        if manifest.canary is None and manifest.base is not None:
            manifest = replaced(manifest, canary=take_canary(self._attached, adapter, manifest))
        return Addition(name, adapter, manifest)

    def load(
        self, folder: Path, name: str | None = None, *, replace: bool = False, prefix: str | None = None
    ) -> StoredAdapter:
        """Take a directory saved here or by plain PEFT into the store.

        Args:
            folder: PEFT directory, with or without a manifest.
            name: Name in the store. None: the manifest's, or the folder's.
            replace: Make a new version when the name exists.
            prefix: What to put before the names of all modules, for LoRA that was made for a part of the base alone,
                such as ``language_model.``.

        Raises:
            UsageError: ``prefix`` is no name, or the adapter says itself what it belongs to.
            AdapterExists: The name is taken and ``replace`` is false.
            AdapterError: It is damaged, unsupported, untrained or for another base; nothing is stored.
        """
        called = folder.name if name is None else require_adapter_name(name)
        if prefix is not None:
            with with_prefix(folder, called, prefix) as renamed:
                return self.load(renamed, called, replace=replace)
        manifest = read_manifest(folder, called)
        return self.keep(folder, manifest, name, replace=replace)

    def seen_images(self, name: str) -> SeenImages | None:
        """The images that an adapter was trained on; None when it does not say.

        Raises:
            AdapterNotFound: There is no such adapter.
            DamagedAdapter: What it says was changed.
        """
        stored = self.store.get(name)
        return read_seen(stored.folder, stored.manifest)

    def list(self) -> list[StoredAdapter]:
        """The store's adapters that were made for this base, and those that do not say for which."""
        stored, _ = self.store.list()
        known = self.known_components
        owners = [(adapter, adapter.manifest.base) for adapter in stored]
        return [a for a, owner in owners if owner is None or owner.is_of(self.entry.identity, known)]

    def remove(self, name: str) -> None:
        """Remove an adapter from the store and from the base.

        Raises:
            AdapterNotFound: There is none.
        """
        self.store.remove(name)
        if "_attached" in self.__dict__ and name in self._attached.names:
            self._attached.detach(name)
