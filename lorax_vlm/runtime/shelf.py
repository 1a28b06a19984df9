"""Several bases on one machine: loaded on first use, and gone again by least recent use when memory runs short."""

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.errors import OutOfMemoryForecast
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.models.loading import LoadedModel, load_model, probe_hardware
from lorax_vlm.models.placement import Device, Precision, Quantization, plan_placement
from lorax_vlm.runtime.library import AdapterLibrary
from lorax_vlm.types import require_whole

logger = logging.getLogger(__name__)


class BaseShelf:
    """The libraries of several bases over one store, of which as many bases are in memory as fit."""

    def __init__(
        self,
        models: Mapping[str, str],
        store: AdapterStore,
        *,
        budget_bytes: int | None = None,
        adapter_memory_bytes: int | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantize: Quantization = "auto",
    ) -> None:
        """Nothing is loaded yet.

        Args:
            models: What short names stand for; see ``checkpoints_by_key``.
            store: Where adapters are kept.
            budget_bytes: Most memory for all bases together. None: what the machine has free.
            adapter_memory_bytes: Most memory for the adapters of each base. None: no limit.
            device: As for ``load_model``.
            dtype: As for ``load_model``.
            quantize: As for ``load_model``.

        Raises:
            UsageError: A limit is no number of bytes.
        """
        for name, limit in {"budget_bytes": budget_bytes, "adapter_memory_bytes": adapter_memory_bytes}.items():
            if limit is not None:
                require_whole(name, limit, 1)
        self.models, self.store = dict(models), store
        self._budget_bytes, self._adapter_memory_bytes = budget_bytes, adapter_memory_bytes
        self._options: dict[str, Any] = {"device": device, "dtype": dtype, "quantize": quantize}
        self._lock = threading.RLock()
        self._entries: dict[str, CatalogEntry] = {}
        self._libraries: dict[str, AdapterLibrary] = {}
        self._loaded: OrderedDict[str, tuple[AdapterLibrary, int]] = OrderedDict()

    def entry(self, model: str) -> CatalogEntry:
        """The checkpoint behind a key, a catalogue name, a hub id or a folder.

        Raises:
            UnknownModel: It is none of these.
        """
        name = self.models.get(model, model) if isinstance(model, str) else model
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None or not entry.family:  # a folder's configuration is read once
            entry = self._entries[name] = get_model_entry(name)
        known = self._libraries.get(entry.source)
        return known.entry if known is not None and known.entry.family else entry

    def described(self, model: str) -> CatalogEntry:
        """The checkpoint with its family, and so with its prompts; one that is not on this machine is loaded for that.

        Raises:
            UnknownModel: As ``entry``.
            CheckpointError: It cannot be loaded.
        """
        if not self.entry(model).family:
            self.load(self.library(model))
        return self.entry(model)

    def library(self, model: str) -> AdapterLibrary:
        """The adapters of a base; it is not loaded for that."""
        entry = self.entry(model)
        with self._lock:
            if entry.source not in self._libraries:  # not by name: two folders may end in the same one
                load = partial(self._load_within_budget, entry)
                self._libraries[entry.source] = AdapterLibrary(entry, load, self.store, self._adapter_memory_bytes)
            return self._libraries[entry.source]

    def library_of(self, identity: str) -> AdapterLibrary:
        """The adapters of the base that manifests call ``identity``.

        Raises:
            UnknownModel: No base in use has that identity, and it is no hub id.
        """
        for library in self._libraries.values():
            if library.entry.identity == identity:
                return library
        return self.library(next((key for key in self.models if self.entry(key).identity == identity), identity))

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory, least recently used first."""
        return [library.entry.name for library, _ in self._loaded.values()]

    def needed_bytes(self, entry: CatalogEntry) -> int | None:
        """Estimate of what a base will take, None when only loading tells."""
        return plan_placement(entry, probe_hardware(), *self._options.values()).needed_bytes

    def load(self, library: AdapterLibrary) -> LoadedModel:
        """The base of a library, in memory; others leave for it when they must.

        Raises:
            OutOfMemoryForecast: It does not fit even alone.
            CheckpointError: It cannot be loaded.
        """
        base = library.base  # its own lock comes first, whoever asks
        with self._lock:
            if library.entry.source in self._loaded:
                self._loaded.move_to_end(library.entry.source)
        return base

    def _load_within_budget(self, entry: CatalogEntry) -> LoadedModel:
        needed = self.needed_bytes(entry) or 0
        load = partial(load_model, entry.name if entry.miniature else entry.source, **self._options)
        with self._lock:
            if self._budget_bytes is not None:
                if needed > self._budget_bytes:
                    raise OutOfMemoryForecast(entry.name, needed, self._budget_bytes, "the budget", "Raise the budget.")
                while self._loaded and self._used_bytes() + needed > self._budget_bytes:
                    self._release_oldest()
            while True:
                try:
                    base = load()
                    break
                except OutOfMemoryForecast:
                    if not self._loaded:
                        raise
                    self._release_oldest()
            weights = sum(tensor.nbytes for tensor in (*base.model.parameters(), *base.model.buffers()))
            self._loaded[entry.source] = (self._libraries[entry.source], max(needed, weights))
        return base

    def _used_bytes(self) -> int:
        return sum(size for _, size in self._loaded.values())

    def _release_oldest(self) -> None:
        _, (library, _) = self._loaded.popitem(last=False)
        logger.info("%s leaves memory.", library.entry.name)
        library.release()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
