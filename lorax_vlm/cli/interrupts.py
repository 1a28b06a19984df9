"""Signals that end a command in good order, as Ctrl-C does. No torch."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def told_of(numbers: tuple[signal.Signals, ...], hear: Callable[..., Any]) -> Iterator[None]:
    """Run a block in which somebody hears of signals; only the main thread can be told of them.

    Args:
        numbers: Of the signals.
        hear: What is called, as ``signal.signal`` calls it; ``signal.default_int_handler`` raises
            ``KeyboardInterrupt``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
