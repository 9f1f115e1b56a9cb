"""How commands that finish what they have begun are asked to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# Who signals a process and then its group (GNU timeout does) signals it twice; nobody presses Ctrl-C as fast.
_ONE_REQUEST_S = 0.1


@contextmanager
def stopping(
    said: str, *, on_first: Callable[[], None] = lambda: None, on_second: Callable[[int], None]
) -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets.

    Args:
        said: to standard error, when that one comes.
        on_first: called with it.
        on_second: called, with the signal's number, when one comes again.
    """
    stop = threading.Event()
    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None:
            if now - first > _ONE_REQUEST_S:
                on_second(number)
            return
        first = now
        stop.set()
        on_first()
        # No print: the signal may have come in the middle of one, which refuses another. And who read it may be gone,
        # by the same Ctrl-C.
        with suppress(OSError):
            os.write(2, f"{said}\n".encode())

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
