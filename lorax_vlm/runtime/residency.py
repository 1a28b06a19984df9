"""Which adapters are in memory: as many as a byte budget allows, the least recently used leave first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from lorax_vlm.errors import AdapterMemoryExceeded

T = TypeVar("T")


@dataclass(eq=False)
class _Entry(Generic[T]):
    item: T
    version: Hashable
    nbytes: int
    leases: int = 0


class Residency(Generic[T]):
    """Items by name within a byte budget.

    A lease keeps what a call uses: nothing leaves while it is leased, and a call that needs more room than is
    free waits until others end. A lease takes all its items at once, so that two calls cannot wait for each other; for
    the same reason a thread that holds a lease must not ask for another one.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        """Start empty; None: no limit."""
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._replaced: list[_Entry[T]] = []  # still leased
        self._changed = threading.Condition(threading.RLock())

    @property
    def names(self) -> list[str]:
        """What is in memory, least recently used first."""
        with self._changed:
            return list(self._entries)

    @property
    def used_bytes(self) -> int:
        """Memory taken, including what was replaced and is still in use."""
        with self._changed:
            return sum(entry.nbytes for entry in (*self._entries.values(), *self._replaced))

    def get(self, name: str) -> T | None:
        """An item if it is in memory; this is no use of it."""
        with self._changed:
            entry = self._entries.get(name)
            return entry.item if entry else None

    @contextmanager
    def lease(
        self,
        versions: Mapping[str, Hashable],
        measure: Callable[[str], int],
        load: Callable[[str], T],
    ) -> Iterator[dict[str, T]]:
        """Keep items in memory for a block; those missing, or there in another version, are loaded first.

        Args:
            versions: Wanted version by name.
            measure: Bytes that loading a name will take. Raises what is wrong with it.
            load: Loads a name.

        Raises:
            AdapterMemoryExceeded: They do not fit even alone.
        """
        entries = self._take(versions, measure, load)
        try:
            yield {name: entry.item for name, entry in entries.items()}
        finally:
            with self._changed:
                for entry in entries.values():
                    entry.leases -= 1
                self._replaced = [entry for entry in self._replaced if entry.leases]
                self._changed.notify_all()

    def _take(
        self, versions: Mapping[str, Hashable], measure: Callable[[str], int], load: Callable[[str], T]
    ) -> dict[str, _Entry[T]]:
        with self._changed:
            sizes: dict[str, int] = {}
            while True:
                missing = [name for name, version in versions.items() if not self._is_current(name, version)]
                sizes |= {name: measure(name) for name in missing if name not in sizes}
                for name in missing:
                    self._drop(name)
                if self._make_room(sum(sizes[name] for name in missing), versions):
                    break
                self._changed.wait()
            for name in missing:
                self._entries[name] = _Entry(load(name), versions[name], sizes[name])
            for name in versions:
                self._entries.move_to_end(name)
                self._entries[name].leases += 1
            return {name: self._entries[name] for name in versions}

    def _is_current(self, name: str, version: Hashable) -> bool:
        entry = self._entries.get(name)
        return entry is not None and entry.version == version

    def _make_room(self, needed: int, wanted: Mapping[str, Hashable]) -> bool:
        """Let the least recently used go until ``needed`` bytes fit; False when others have to end first."""
        if self.budget_bytes is None:
            return True
        staying = sum(e.nbytes for name, e in self._entries.items() if name in wanted)
        if staying + needed > self.budget_bytes:
            raise AdapterMemoryExceeded(list(wanted), staying + needed, self.budget_bytes)
        for name in list(self._entries):
            if self.used_bytes + needed <= self.budget_bytes:
                break
            if name not in wanted and not self._entries[name].leases:
                del self._entries[name]
        return self.used_bytes + needed <= self.budget_bytes

    def remove(self, name: str) -> None:
        """Forget an item; calls that use it keep it until they end."""
        with self._changed:
            self._drop(name)
            self._changed.notify_all()

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None and entry.leases:
            self._replaced.append(entry)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wait until no call uses anything, and let none begin during the block."""
        with self._changed:
            self._changed.wait_for(lambda: not any(e.leases for e in (*self._entries.values(), *self._replaced)))
            yield

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            for name in list(self._entries):
                self.remove(name)
