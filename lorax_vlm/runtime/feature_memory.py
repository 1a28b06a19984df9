"""What the base saw of the latest images, so that a further question or adapter does not encode an image again."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from lorax_vlm.models.families.pictures import Features

MEMORY_BYTES = 64 * 1024**2
"""Of BLIP-2 OPT-2.7B in 16 bits, the features of 400 images."""


class FeatureMemory:
    """What one frozen image path sees, by ``Picture.digest``; the least recently used leave first."""

    def __init__(self, budget_bytes: int = MEMORY_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._known: OrderedDict[str, Features] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()

    def features(self, keys: Sequence[str], encode: Callable[[list[int]], list[Features]]) -> list[Features]:
        """Features of each image; those not known are encoded together.

        Args:
            keys: One per image; equal ones are encoded once.
            encode: Features of the images at these places among ``keys``.
        """
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
            for key in found:
                self._known.move_to_end(key)
        missing = {key: place for place, key in enumerate(keys) if key not in found}
        if missing:
            # A copy of each, so that one that stays does not keep the whole batch in memory.
            new = {key: row.copy() for key, row in zip(missing, encode(list(missing.values())), strict=True)}
            found |= new
            with self._lock:
                for key, row in new.items():
                    self._add(key, row)
        return [found[key] for key in keys]

    def _add(self, key: str, row: Features) -> None:
        if key in self._known or row.nbytes > self._budget_bytes:
            return
        self._known[key] = row
        self._used_bytes += row.nbytes
        while self._used_bytes > self._budget_bytes:
            _, oldest = self._known.popitem(last=False)
            self._used_bytes -= oldest.nbytes
