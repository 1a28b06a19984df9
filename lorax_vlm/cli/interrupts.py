"""Signals that end a command as Ctrl-C does, so that what it holds is put in order. No torch."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Run a block in which a signal raises ``KeyboardInterrupt``; only the main thread can be told of signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, former)
