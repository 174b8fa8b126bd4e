"""One writer at a time: a lock of the system for a folder on a disk, a lease for a folder at a URL.

A storage of objects has no locks and no renaming, and the clocks of two machines disagree. So a writer leaves ``writer.json``
with a token of its own and a counter that a thread moves on every few seconds. Whoever comes second watches the counter by
its own clock alone: while it moves, the folder is taken; if it stands still for long enough, the writer is dead and the lease
is taken over. A writer that was held up for so long (a laptop asleep) finds its token gone and stops before it writes again.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import StorageError, StoreError
from ..folders import locked
from .folder import Folder

log = logging.getLogger(__name__)

LEASE = "writer.json"
RENEW_S = 4.0  # between two movements of the counter
PATIENCE_S = 20.0  # a counter that stands still for so long belongs to the dead; several renewals, of which some may fail
POLL_S = 1.0  # between two looks at the counter of another
SETTLE_S = (
    0.5  # two writers that begin in the same moment both write; the later one wins, and this is how long both wait to see
)


@contextmanager
def writing(folder: Folder) -> Iterator[Callable[[], None]]:
    """Hold ``folder`` for one writer; yields what is to be called before each file that is written.

    Raises
    ------
    StoreError
        Another process is writing to the folder; or, from what is yielded: it has taken this one for dead and taken over.
    """
    if isinstance(folder.place, Path):
        with locked(folder.place):
            yield _nothing
        return
    lease = _Lease(folder)
    lease.take()
    try:
        yield lease.check
    finally:
        lease.release()


def _nothing() -> None:
    """The lock of the system cannot be lost."""


class _Lease:
    """The token of this writer in ``folder``, and the thread that moves its counter on."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.token = uuid.uuid4().hex
        self.count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="auscult-lease", daemon=True)

    def take(self) -> None:
        self._wait_for_the_dead()
        self._write()
        time.sleep(SETTLE_S)
        self.check()
        self._thread.start()

    def _wait_for_the_dead(self) -> None:
        seen = _read(self.folder)
        since = time.monotonic()
        while seen is not None and not _is_dead(seen):
            if time.monotonic() - since >= PATIENCE_S:
                log.warning("%s: takes over from %s, which has stopped", self.folder.place, _named(seen))
                return
            time.sleep(POLL_S)
            now = _read(self.folder)
            if now is not None and now != seen:
                raise StoreError(f"{self.folder.place}: another process is writing to it ({_named(now)}); wait for it to end")
            seen = now

    def _write(self) -> None:
        content = {"token": self.token, "count": self.count, "pid": os.getpid(), **_here()}
        self.folder.write(LEASE, json.dumps(content).encode("utf-8"))

    def check(self) -> None:
        """Raise unless the folder is still this writer's."""
        seen = _read(self.folder)
        if seen is None or seen.get("token") != self.token:
            other = "nobody" if seen is None else _named(seen)
            raise StoreError(
                f"{self.folder.place}: the lease of this process was taken over by {other}; nothing was lost, "
                "wait for it to end and give the same command again"
            )

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self.check()
                self.count += 1
                self._write()
            except StorageError as error:  # it may be reached again before anybody's patience ends
                log.warning("%s", error)
            except StoreError:
                return  # whoever writes next finds out

    def release(self) -> None:
        """Give the folder back, if it is still this writer's."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(StoreError, StorageError):
            self.check()
            self.folder.delete(LEASE)


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        content = json.loads(folder.read(LEASE))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}  # no lease of ours; it does not move
    return content if isinstance(content, dict) else {}


def _here() -> dict[str, str]:
    """This machine by name, and what tells it (or a container on it) from others of the same name and from its past."""
    identity = [platform.node()]
    with suppress(OSError):
        identity.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        identity.append(os.readlink("/proc/self/ns/pid"))  # process ids mean something within it only
    return {"host": platform.node(), "machine": "/".join(identity)}


def _is_dead(lease: dict[str, Any]) -> bool:
    """Whether a lease is of a process of this machine that has ended."""
    pid = lease.get("pid")
    if lease.get("machine") != _here()["machine"] or not isinstance(pid, int) or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _named(lease: dict[str, Any]) -> str:
    return f"process {lease.get('pid', '?')} on {lease.get('host', 'an unknown host')}"
