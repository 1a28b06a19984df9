"""Several bases on one machine: loaded when they are used, and gone by least recent use when memory runs short."""

import gc
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Any, TypedDict, Unpack

import torch

from lorax_vlm.adapters.ownership import Owner, owner_of
from lorax_vlm.adapters.store import AdapterStore
from lorax_vlm.asking import distinct_adapters
from lorax_vlm.errors import OutOfMemoryForecast
from lorax_vlm.models.catalog import CatalogEntry, get_model_entry
from lorax_vlm.models.description import BaseDescription
from lorax_vlm.models.loading import LoadedModel, describe_model, load_model, probe_hardware
from lorax_vlm.models.local import require_checkpoint
from lorax_vlm.models.placement import Device, Precision, Quantization, plan_placement
from lorax_vlm.runtime.engine import BaseEngine
from lorax_vlm.types import require_known, require_whole

logger = logging.getLogger(__name__)
Load = Callable[[CatalogEntry], LoadedModel]
_ONE_LOADS = threading.RLock()
"""Held while a base is loaded: what is free is known only when the former one is there, and meanwhile the libraries set
defaults of the whole process."""


class BaseOptions(TypedDict, total=False):
    """What may be said of bases."""

    device: Device
    """``auto`` takes CUDA when there is one."""
    dtype: Precision
    """``auto``: see ``models/placement.py``."""
    quantize: Quantization
    """``auto``: 4 bits on CUDA, none on a CPU."""
    image_tokens: int | None
    """Most tokens of an image, for bases that take large images apart. None: as few as can be."""
    memory_budget_bytes: int | None
    """Most memory for all bases; the least recently used leaves. None: what is free."""
    adapter_memory_bytes: int | None
    """Most memory for the adapters of each base; the least recently used leave first. None: no limit."""
    batch_size: int | None
    """Most rows per forward pass. None: 32, of a miniature 128."""
    load: Load | None
    """Loads a base. None: from its files."""


@dataclass(eq=False)
class _Place:
    """A base that is in memory, or on its way there."""

    engine: BaseEngine | None = None
    nbytes: int = 0
    leases: int = 0
    loading: bool = False
    waiting: OutOfMemoryForecast | None = None
    """While its load waits for others to be let go: what it would otherwise end in."""


class Bases:
    """The bases over one store, of which as many are in memory as fit. ``use`` is the only door to them."""

    def __init__(self, models: Mapping[str, str], store: AdapterStore, **options: Unpack[BaseOptions]) -> None:
        """Nothing is loaded yet.

        Args:
            models: What short names stand for; see ``checkpoints_by_key``.
            store: Where adapters are kept.
            options: See ``BaseOptions``.

        Raises:
            UsageError: An option is unknown, a limit is no number of bytes, or a batch no number of rows.
        """
        require_known(options, BaseOptions.__annotations__)
        given: Mapping[str, Any] = options
        for name in ("memory_budget_bytes", "adapter_memory_bytes", "batch_size", "image_tokens"):
            if given.get(name) is not None:
                require_whole(name, given[name], 1)
        self.models, self.store = dict(models), store
        self._budget_bytes = options.get("memory_budget_bytes")
        self._adapter_memory_bytes = options.get("adapter_memory_bytes")
        self._batch_size, self._load_base = options.get("batch_size"), options.get("load")
        self._options = {name: given.get(name, "auto") for name in ("device", "dtype", "quantize")}
        self._image_tokens = options.get("image_tokens")
        self._changed = threading.Condition()
        self._held: Counter[int] = Counter()
        self._entries: dict[str, CatalogEntry] = {}
        self._told: dict[str, CatalogEntry] = {}
        self._places: OrderedDict[str, _Place] = OrderedDict()

    # --- what is known without loading ------------------------------------------------------------------------------

    def entry(self, model: str) -> CatalogEntry:
        """The checkpoint behind a key, a catalogue name, a hub id or a folder.

        Raises:
            UnknownModel: It is none of these.
        """
        entry = self._original(model)
        return self._told.get(entry.source, entry)

    def _original(self, model: str) -> CatalogEntry:
        """What is known of a checkpoint before it is loaded; its place goes by that."""
        name = self.models.get(model, model) if isinstance(model, str) else model
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None or not entry.family:  # a folder's configuration is read once
            entry = self._entries[name] = get_model_entry(name)
        return entry

    def described(self, model: str) -> CatalogEntry:
        """The checkpoint with its family, and so with its prompts; one that is not on this machine is loaded for that.

        Raises:
            UnknownModel: As ``entry``.
            CheckpointError: It cannot be loaded.
        """
        if not self.entry(model).family:
            with self.use(model):
                pass
        return self.entry(model)

    def describe(self, model: str, *, fetch: bool = False) -> BaseDescription:
        """A base with its fingerprint, without loading it; of a large one all weights are read the first time.

        Args:
            model: The base.
            fetch: Fetch it where it is not on this machine.

        Raises:
            CheckpointError: It is not here, cannot be fetched, or is of no supported family.
        """
        entry = self._original(model)
        base = self._loaded_base(entry)
        if base is not None:
            return replaced(base.description, fingerprint=base.fingerprint)
        if not fetch:
            require_checkpoint(entry)
        return describe_model(entry)

    def owner(self, model: str) -> Owner:
        """A base as the owner of adapters; its weights are known where they were read before. Nothing is loaded."""
        entry, base = self.entry(model), self._loaded_base(self._original(model))
        return owner_of(entry, base.known_components if base is not None else None)

    def model_of(self, identity: str) -> str:
        """A name for the base that manifests call ``identity``.

        Raises:
            UnknownModel: No base in use has that identity, and it is no hub id.
        """
        for entry in (*self._told.values(), *self._entries.values()):
            if entry.identity == identity:
                return entry.name if entry.miniature else entry.source
        model = next((key for key in self.models if self.entry(key).identity == identity), identity)
        self.entry(model)
        return model

    def _loaded_base(self, entry: CatalogEntry) -> LoadedModel | None:
        with self._changed:
            place = self._places.get(entry.source)
            return place.engine.base if place is not None and place.engine is not None else None

    def is_loaded(self, model: str) -> bool:
        """Whether a base is in memory."""
        return self._loaded_base(self._original(model)) is not None

    def require_adapters(self, names: Sequence[str | None], model: str, *, rows: int = 1) -> None:
        """Raise ``AdapterNotFound`` for an unknown name before a base is loaded for it. None is the base's.

        A base that is loaded and is asked for any ``rows`` finds out by itself, in the version that it then uses.
        """
        named = distinct_adapters(names)
        if not (rows and self.is_loaded(model)):
            for name in named:
                if name is not None:
                    self.store.find(name, self.entry(model).name)

    def forget(self, name: str) -> None:
        """Take a stored adapter out of memory, with all its versions; calls that use them end undisturbed."""
        with self._changed:
            engines = [place.engine for place in self._places.values() if place.engine is not None]
        for engine in engines:
            engine.forget(name)

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory, least recently used first."""
        with self._changed:
            return [place.engine.entry.name for place in self._places.values() if place.engine is not None]

    def needed_bytes(self, entry: CatalogEntry) -> int | None:
        """Estimate of what a base will take, None when only loading tells."""
        return plan_placement(entry, probe_hardware(), *self._options.values()).needed_bytes

    def batch_size(self, entry: CatalogEntry) -> int:
        """Most rows per forward pass of a base."""
        return self._batch_size or (128 if entry.miniature else 32)

    # --- the door ---------------------------------------------------------------------------------------------------

    @contextmanager
    def use(self, model: str) -> Iterator[BaseEngine]:
        """Run a block with a base, which is loaded if it is not in memory and stays there until the block ends.

        Others may load or use other bases meanwhile. One that finds no room waits until bases are let go, unless the
        thread that asks holds one itself.

        Raises:
            UnknownModel: It is nothing known.
            OutOfMemoryForecast: It does not fit even alone, or beside those that this thread holds.
            CheckpointError: It cannot be loaded.
        """
        entry = self._original(model)
        place, engine = self._enter(entry)
        thread = threading.get_ident()  # which may not be the one that ends the block
        with self._changed:
            self._held[thread] += 1
        try:
            yield engine
        finally:
            with self._changed:
                self._held[thread] -= 1
                self._held += Counter()  # forgets threads that hold nothing
                place.leases -= 1
                self._changed.notify_all()

    def _enter(self, entry: CatalogEntry) -> tuple[_Place, BaseEngine]:
        with self._changed:
            place = self._places.setdefault(entry.source, _Place())
            place.leases += 1  # so that it does not leave before it is there
            try:
                while place.loading:
                    if place.waiting is not None and self._holds():
                        raise place.waiting  # it may be waiting for what this thread holds
                    self._changed.wait()
            except BaseException:
                place.leases -= 1
                raise
            self._places.move_to_end(entry.source)
            if place.engine is not None:
                return place, place.engine
            place.loading = True
        try:
            engine = self._loaded(entry, place)
        except BaseException:
            with self._changed:
                place.leases -= 1
                place.nbytes = 0
            raise
        finally:
            with self._changed:
                place.loading = False
                self._changed.notify_all()
        return place, engine

    def _loaded(self, entry: CatalogEntry, place: _Place) -> BaseEngine:
        """Load a base, outside the lock; others leave for it when they must."""
        load = self._load_base or self._load_by_options
        needed = self.needed_bytes(entry) or 0
        budget = self._budget_bytes
        if budget is not None and needed > budget:
            raise OutOfMemoryForecast(entry.name, needed, budget, "the budget", "Raise the budget.")
        with self._changed:
            while budget is not None and self._used_bytes() + needed > budget:
                if not self._release_one():
                    error = OutOfMemoryForecast(entry.name, needed, budget, "the budget", "Raise the budget.")
                    self._wait_for_room(place, error)
            place.nbytes = needed
        while True:
            try:
                with _ONE_LOADS:
                    base = load(entry)
                break
            except OutOfMemoryForecast as error:
                with self._changed:
                    if not self._release_one():
                        self._wait_for_room(place, error)
        weights = sum(tensor.nbytes for tensor in (*base.model.parameters(), *base.model.buffers()))
        batch_size = self.batch_size(base.entry)
        engine = BaseEngine(base, self.store, adapter_memory_bytes=self._adapter_memory_bytes, batch_size=batch_size)
        with self._changed:
            place.engine, place.nbytes = engine, max(needed, weights)
            self._told[entry.source] = base.entry  # only loading tells the family of what is not on this machine
        return engine

    def clear(self) -> None:
        """Let every base go that nobody uses; they are loaded again when they are needed."""
        with self._changed:
            while self._release_one():
                pass

    def _load_by_options(self, entry: CatalogEntry) -> LoadedModel:
        name = entry.name if entry.miniature else entry.source
        return load_model(name, image_tokens=self._image_tokens, **self._options)

    def _used_bytes(self) -> int:
        return sum(place.nbytes for place in self._places.values())

    def _release_one(self) -> bool:
        """Let the least recently used base go that nobody uses; False when there is none."""
        for source, place in self._places.items():
            if place.engine is not None and not place.leases:
                logger.info("%s leaves memory.", place.engine.entry.name)
                place.engine.restore_base()
                del self._places[source]
                place.engine = None
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                return True
        return False

    def _wait_for_room(self, own: _Place, error: OutOfMemoryForecast) -> None:
        """Wait until another thread lets a base go; where none will, raise."""
        others = any(
            place is not own
            and ((place.loading and place.waiting is None) or (place.leases and place.engine is not None))
            for place in self._places.values()
        )
        if not others or self._holds():
            raise error
        own.waiting = error
        logger.info("%s Waiting until others let a base go.", error)
        self._changed.notify_all()
        try:
            self._changed.wait()
        finally:
            own.waiting = None

    def _holds(self) -> bool:
        return self._held[threading.get_ident()] > 0
