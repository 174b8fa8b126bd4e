"""Ctrl-C where an exception would be swallowed, and pressed twice."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

STOPPED = 130  # 128 and the number of SIGINT: what shells give for a program that Ctrl-C has ended
Handler = Callable[[int, FrameType | None], Any]


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


class NotedInterrupt:
    """A Ctrl-C that was noted and waits for a good moment; see :func:`interrupts_noted`."""

    def __init__(self, before: Handler) -> None:
        self._before = before
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._heeded = False

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed and not heeded yet."""
        return bool(self._waiting)

    def heed(self, note: str = "") -> None:
        """Do what Ctrl-C did before the block, if it was pressed: raise ``KeyboardInterrupt``, as a rule, with a note."""
        if not self._waiting:
            return
        self._heeded = True
        try:
            self._before(*self._waiting.pop(0))
        except KeyboardInterrupt as stop:
            if note:
                stop.add_note(note)
            raise

    def forget(self) -> None:
        """Take a Ctrl-C that was not heeded for one that came too late: all is done, and there is nothing left to stop."""
        self._waiting.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append((number, frame))
        while len(self._waiting) > 1:  # before may count them, as that of end_at_second_interrupt does
            with suppress(KeyboardInterrupt):
                self.heed()
        if self._heeded:  # whoever presses twice does not want to wait
            self.heed()


@contextmanager
def interrupts_noted() -> Iterator[NotedInterrupt]:
    """Note the first Ctrl-C in the block and let the block decide when to heed it; the second one is heeded at once.

    For long work of libraries that run Python where an exception is printed and forgotten (``__del__``, callbacks of C code):
    raised there, an interrupt would be lost. What is still unheeded when the block has ended by itself is heeded then.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield NotedInterrupt(lambda *_: None)  # only the main thread gets SIGINT, and not where it is ignored
        return
    noted = NotedInterrupt(before)
    signal.signal(signal.SIGINT, noted._note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)
    noted.heed()


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
