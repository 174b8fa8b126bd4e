"""``review.db`` as a file that many threads and processes use at once: connections, transactions, errors in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from ..errors import StoreError
from .schema import prepare

BUSY_S = 30.0  # a commit takes milliseconds, so whoever waits this long waits for something that hangs


class Database:
    """A SQLite database of ours; each call uses a connection of its own from a small pool.

    An object must not be carried across a fork.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock, self._turn = Lock(), Lock()
        self._closed = False

    def close(self) -> None:
        """Close the connections; one that is in use closes when its call ends."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path}: this {type(self).__name__} was closed; open it again")
            connection = self._idle.pop() if self._idle else None
        try:
            connection = connection or self._fresh()
            yield connection
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {_explained(error)}") from error
        finally:
            if connection is not None:
                self._give_back(connection)

    def _fresh(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.rollback()
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction; it is on the disk when the block has ended."""
        # SQLite lets waiting writers sleep and try again, ever longer; threads of one process may as well queue
        with self._turn, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()


def _explained(error: sqlite3.Error) -> str:
    """What SQLite says, in words that help."""
    text = str(error)
    if "not a database" in text:
        return "is no database (SQLite); move it away, or restore it from a copy"
    if "malformed" in text:
        return "the database is damaged; restore it from a copy, or recover it with `sqlite3 review.db .recover`"
    if "locked" in text:
        return f"another process has kept it locked for {BUSY_S:.0f} s; end that process"
    if "readonly" in text or "unable to open" in text:
        return f"cannot be written ({text}); check the permissions of the file and its folder"
    return f"the database refused: {text}"
