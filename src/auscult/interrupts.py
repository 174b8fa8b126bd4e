"""Ctrl-C where an exception would be swallowed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block has ended, and heed it then.

    For calls of a C library that calls back into Python (libsndfile reads and writes file objects so): raised there, the
    interrupt would be printed and forgotten, and the library would take the file for shorter than it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets SIGINT
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, or left to the system, which needs no exception
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> Any:
        held.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[0])
