"""Ctrl-C where an exception would be swallowed, and pressed twice."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

STOPPED = 130  # 128 and the number of SIGINT: what shells give for a program that Ctrl-C has ended


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


def end_at_second_interrupt() -> None:
    """Let the first Ctrl-C raise ``KeyboardInterrupt``, as ever, and the second end this program and its processes at once.

    For a program's start: whoever presses twice does not want to wait for what is still being tidied up, and an interrupt that
    is raised in the midst of that may leave processes that wait for each other.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored: a background job is not to be stopped
        return
    pressed: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if pressed:
            leave(STOPPED)
        pressed.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)


def leave(code: int) -> NoReturn:
    """End this process and those that it started through multiprocessing, now; nothing that waits at the exit is heeded."""
    with suppress(Exception):
        if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
            for child in multiprocessing.active_children():
                child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
