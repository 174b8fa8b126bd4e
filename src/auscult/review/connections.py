"""Connections of the review server that nobody can hold open without asking something."""

from __future__ import annotations

import asyncio
import sys

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # from a request's first byte, or the connection's start, to the end of its headers
CONNECTIONS = 128  # at a time: a browser opens six


class Connection(H11Protocol):
    """An HTTP connection that is closed when its request takes too long to arrive.

    Uvicorn waits for the rest of a request as long as it takes, so that half of one from each of a few hundred connections
    would use up the files that a process may open. When there are many, the one that waited longest makes room.
    (Its ``limit_concurrency`` counts those that wait, too, and would refuse everyone else.)
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether no request is being answered."""
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > most_connections():
            others = [one for one in self.connections if isinstance(one, Connection) and one is not self and one.waiting]
            min(others, key=lambda one: one._since, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waiting:
            self._stop_waiting()
        elif self._deadline is None:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_request(self) -> None:
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_S, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self.waiting:
            self.transport.abort()


def most_connections() -> int:
    """How many connections there may be: half of the files that this process may open, and :data:`CONNECTIONS` at the most."""
    if sys.platform == "win32":
        return CONNECTIONS
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files == resource.RLIM_INFINITY else max(8, min(CONNECTIONS, files // 2))
