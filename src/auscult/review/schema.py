"""Tables of ``review.db``, and the rules that the database itself enforces, whichever program writes to it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from ..errors import StoreError

VERDICTS = ("replication", "similar", "different", "unsure")
WITHDRAWN = "withdrawn"
DECISIONS = ("all_one", "split", "not_duplicates")
TRUTHS = ("replication", "different")
VERSION = 1
APPLICATION = 0x6175_7276  # "aurv", in the file's header


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} TEXT NOT NULL CHECK ({column} IN ({', '.join(repr(value) for value in values)}))"


_NAME = "reviewer TEXT NOT NULL CHECK (length(reviewer) BETWEEN 1 AND 64)"
_EVENT = "id INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL UNIQUE"
_CLOSING = "note TEXT NOT NULL DEFAULT '' CHECK (length(note) <= 2000), decided_at TEXT NOT NULL"
_TABLES = {
    "verdicts": f"{_EVENT}, pair_id TEXT NOT NULL, query_id TEXT NOT NULL, reference_id TEXT NOT NULL, {_NAME}, "
    f"{_one_of('verdict', (*VERDICTS, WITHDRAWN))}, {_CLOSING}",
    "cluster_verdicts": f"{_EVENT}, cluster_key TEXT NOT NULL, {_NAME}, {_one_of('decision', (*DECISIONS, WITHDRAWN))}, "
    f'"groups" TEXT NOT NULL, kept TEXT NOT NULL, {_CLOSING}',
    "controls": f"id INTEGER PRIMARY KEY AUTOINCREMENT, pair_id TEXT NOT NULL UNIQUE, {_one_of('truth', TRUTHS)}, "
    "row TEXT NOT NULL",
    "samples": "id INTEGER PRIMARY KEY AUTOINCREMENT, sample_id TEXT NOT NULL UNIQUE, seed INTEGER NOT NULL, "
    "created TEXT NOT NULL, strata TEXT NOT NULL",
    "sample_rows": "id INTEGER PRIMARY KEY AUTOINCREMENT, sample_id TEXT NOT NULL, stratum INTEGER NOT NULL, "
    "place INTEGER NOT NULL, pair_id TEXT NOT NULL, UNIQUE (sample_id, stratum, place)",
}
_INDEXES = (
    "CREATE INDEX verdicts_by_pair ON verdicts (pair_id, reviewer, decided_at)",
    "CREATE INDEX verdicts_by_reviewer ON verdicts (reviewer, pair_id, decided_at)",
    "CREATE INDEX clusters_by_key ON cluster_verdicts (cluster_key, reviewer, decided_at)",
)


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Set a fresh connection up, and make the tables in an empty file.

    Raises
    ------
    StoreError
        The database is another program's, or a newer auscult's.
    """
    connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns, not only in the cache
    connection.execute("PRAGMA recursive_triggers = ON")  # or INSERT OR REPLACE would delete past the triggers
    if _version(connection, path) == 0:
        _make(connection, path)


def _version(connection: sqlite3.Connection, path: Path) -> int:
    # another process may be making the tables: what is read last is at least as new, so ours are never taken for a stranger's
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 3").fetchall()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    if application != APPLICATION and (version or tables):
        names = ", ".join(name for (name,) in tables)
        raise StoreError(f"{path}: a database of another program (it holds {names or 'no table'}); move it away")
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer auscult (schema {version}, this one knows up to {VERSION}); "
            "update with pip install -U auscult"
        )
    return version


def _make(connection: sqlite3.Connection, path: Path) -> None:
    _turn_to_wal(connection)
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection, path) == 0:  # another process may have been first
        for name, columns in _TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
            for what in ("UPDATE", "DELETE"):
                connection.execute(
                    f"CREATE TRIGGER {name}_no_{what.lower()} BEFORE {what} ON {name} "
                    f"BEGIN SELECT RAISE(ABORT, '{name} is append-only: add a row instead'); END"
                )
            if "event_id" in columns:  # the same for the INSERT OR REPLACE of a program that does not set recursive_triggers
                connection.execute(
                    f"CREATE TRIGGER {name}_no_replace BEFORE INSERT ON {name} "
                    f"WHEN EXISTS (SELECT 1 FROM {name} WHERE event_id = NEW.event_id OR id = NEW.id) "
                    f"BEGIN SELECT RAISE(ABORT, '{name} is append-only: this event is stored already'); END"
                )
        for index in _INDEXES:
            connection.execute(index)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _turn_to_wal(connection: sqlite3.Connection, patience_s: float = 10.0) -> None:
    """Readers and one writer at once; the mode stays with the file.

    SQLite does not wait for other processes at this one step (its busy timeout does not apply), so this does.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return
