"""Who writes to an output behind an address: a small file there keeps other machines out meanwhile. No torch.

Not every store there can make a file only where there is none, so two that begin in the same moment may both think that
they are alone: the one whose file was written over finds that out at its next look, and ends.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from lorax_vlm.errors import PathError, RemoteError
from lorax_vlm.foreign import parse_json
from lorax_vlm.paths import OWN_FOLDER
from lorax_vlm.processes import Worker
from lorax_vlm.sharing.places import RemoteFolder

_RENEWED_EVERY_S = 60.0
_HOLDS_S = 300.0
"""So long after it was last renewed."""


@dataclass(frozen=True)
class _Said:
    """What such a file says."""

    worker: Worker
    renewed: float
    """Seconds since the epoch, by the clock of its machine."""

    @property
    def holds(self) -> bool:
        """Whether its worker still writes there, as far as can be known."""
        if self.worker.is_here:
            return self.worker.may_live
        return time.time() - self.renewed < _HOLDS_S


class Claim:
    """An output that nobody else writes to."""

    def __init__(self, remote: RemoteFolder, journal: str) -> None:
        """Nothing is asked.

        Args:
            remote: The output.
            journal: What its journal is called: there may be several in one folder, of several tables.
        """
        self._remote, self._name, self._worker = remote, f"{OWN_FOLDER}/{journal}.writing.json", Worker.this()
        self._lost: PathError | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it for a block.

        Raises:
            PathError: Another process has it.
            RemoteError: It cannot be written to.
        """
        self._take()
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(ended,), name="claim", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            with suppress(RemoteError):  # it no longer holds after a while, and this is said of the work first
                found = self._read()
                if found is not None and found.worker == self._worker:
                    self._remote.remove(self._name)

    def require(self) -> None:
        """Raise ``PathError`` where another process has taken it meanwhile."""
        if self._lost is not None:
            raise self._lost

    def _take(self) -> None:
        before = self._other()
        if before is not None and before.holds:
            raise self._taken(before)
        self._write()
        if (now := self._other()) is not None:
            raise self._taken(now)

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEWED_EVERY_S):
            with suppress(RemoteError):  # what is sent meets the same trouble, and says so
                if (other := self._other()) is not None:
                    self._lost = self._taken(other)
                    return
                self._write()

    def _taken(self, by: _Said) -> PathError:
        hint = (
            f"If it has ended, that is known {_HOLDS_S / 60:.0f} minutes after it last wrote {self._name} there; "
            "or remove that file."
        )
        return PathError(self._remote.url, f"{by.worker} is writing texts there", hint)

    def _write(self) -> None:
        content = {**dataclasses.asdict(self._worker), "renewed": time.time()}
        self._remote.write(self._name, json.dumps(content).encode())

    def _other(self) -> _Said | None:
        """What another process says there."""
        found = self._read()
        return None if found is None or found.worker == self._worker else found

    def _read(self) -> _Said | None:
        """What the file says; None where there is none, or another program's."""
        data = self._remote.read_if_there(self._name)
        try:
            said: Any = parse_json(data) if data is not None else {}
            worker = Worker(int(said["process"]), said["host"], float(said["began"]))
            return _Said(worker, float(said["renewed"])) if isinstance(worker.host, str) else None
        except (ValueError, TypeError, KeyError):
            return None
