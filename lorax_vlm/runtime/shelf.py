"""Several bases on one machine: loaded on first use, and gone again by least recent use when memory runs short."""

import gc
import logging
from collections import OrderedDict

import torch

from lorax_vlm.errors import OutOfMemoryForecast
from lorax_vlm.models.catalog import CatalogEntry
from lorax_vlm.models.loading import LoadedModel, probe_hardware
from lorax_vlm.models.placement import Device, Precision, Quantization, plan_placement
from lorax_vlm.runtime.library import AdapterLibrary

logger = logging.getLogger(__name__)


class BaseShelf:
    """The libraries of several bases, of which as many bases are in memory as fit."""

    def __init__(
        self,
        *,
        budget_bytes: int | None = None,
        device: Device = "auto",
        dtype: Precision = "auto",
        quantize: Quantization = "auto",
    ) -> None:
        """Nothing is loaded yet.

        Args:
            budget_bytes: Most memory for all bases together. None: what the machine has free.
            device: As for ``load_model``.
            dtype: As for ``load_model``.
            quantize: As for ``load_model``.
        """
        self._budget_bytes = budget_bytes
        self._options = (device, dtype, quantize)
        self._loaded: OrderedDict[str, tuple[AdapterLibrary, int]] = OrderedDict()

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory, least recently used first."""
        return list(self._loaded)

    def needed_bytes(self, entry: CatalogEntry) -> int | None:
        """Estimate of what a base will take, None when only loading tells."""
        return plan_placement(entry, probe_hardware(), *self._options).needed_bytes

    def load(self, library: AdapterLibrary) -> LoadedModel:
        """The base of a library, in memory; others leave for it when they must.

        Raises:
            OutOfMemoryForecast: It does not fit even alone.
            CheckpointError: It cannot be loaded.
        """
        name = library.entry.name
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return library.base
        needed = self.needed_bytes(library.entry) or 0
        if self._budget_bytes is not None:
            if needed > self._budget_bytes:
                raise OutOfMemoryForecast(name, needed, self._budget_bytes, "the budget", "Raise the budget.")
            while self._loaded and self._used_bytes() + needed > self._budget_bytes:
                self._release_oldest()
        while True:
            try:
                base = library.base
                break
            except OutOfMemoryForecast:
                if not self._loaded:
                    raise
                self._release_oldest()
        weights = sum(tensor.nbytes for tensor in (*base.model.parameters(), *base.model.buffers()))
        self._loaded[name] = (library, max(needed, weights))
        return base

    def _used_bytes(self) -> int:
        return sum(size for _, size in self._loaded.values())

    def _release_oldest(self) -> None:
        name, (library, _) = self._loaded.popitem(last=False)
        logger.info("%s leaves memory.", name)
        library.release()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
