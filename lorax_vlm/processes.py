"""Who works on something: a process of this machine or of another one. No torch."""

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

_SLACK_S = 2.0
"""The system says to so much when a process began."""
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Worker:
    """A process, by what others can look it up with."""

    process: int
    """Its number."""
    host: str
    began: float | None = None
    """Seconds since the epoch; None where it was not noted."""

    @classmethod
    def this(cls) -> "Worker":
        """This process."""
        return cls(os.getpid(), socket.gethostname(), psutil.Process().create_time())

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_here(self) -> bool:
        """Whether it is one of this machine."""
        return self.host == socket.gethostname()

    @property
    def may_live(self) -> bool:
        """Whether it has not ended, as far as can be known: one of another machine is taken to go on."""
        if not self.is_here:
            return True
        try:
            began = psutil.Process(self.process).create_time()
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return True
        return self.began is None or abs(began - self.began) < _SLACK_S

    def interrupt(self, works: Callable[[], bool], wait_s: float) -> bool:
        """Interrupt it, on this machine, as Ctrl-C does, and wait; whether what it did has ended.

        Args:
            works: Whether it still does it.
            wait_s: At most.
        """
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.process, signal.SIGINT)
        until = time.monotonic() + wait_s
        while works():
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def still_works(self, wait_s: float) -> str:
        """What to say of work that was interrupted and goes on."""
        return (
            f"was interrupted and has not ended within {wait_s:g} s. What a script runs in the background ignores "
            f"interrupts: kill {self.process} ends it, and what it has kept stays."
        )
