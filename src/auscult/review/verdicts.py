"""Verdicts on disk: ``review.db`` of an audit or a deduplication, SQLite, append-only, for several reviewers at once.

Nothing that a reviewer decided is ever changed or deleted: a change of mind is a new row, an undo a row ``withdrawn``. Each row
has an ``event_id`` that its sender chose, so a request that is repeated after a crash is stored once.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import StoreError
from ..folders import REVIEW_DB
from .database import Database
from .exchange import read_cluster_rows, read_rows, write_rows
from .fields import check_groups, cluster_key, event_name, majority, note_text, now, one_of, pair_id, reviewer_name
from .schema import DECISIONS, TRUTHS, VERDICTS, WITHDRAWN

__all__ = [
    "DECISIONS",
    "REVIEW_DB",
    "VERDICTS",
    "WITHDRAWN",
    "Control",
    "Sample",
    "Stratum",
    "VerdictStore",
    "cluster_key",
    "pair_id",
]

_VERDICT_COLUMNS = ("event_id", "pair_id", "query_id", "reference_id", "reviewer", "verdict", "note", "decided_at")
_CLUSTER_COLUMNS = ("event_id", "cluster_key", "reviewer", "decision", "groups", "kept", "note", "decided_at")
_COLUMNS = {"verdicts": _VERDICT_COLUMNS, "cluster_verdicts": _CLUSTER_COLUMNS}
LATEST_SCHEMA = pa.schema([(name, pa.string()) for name in _VERDICT_COLUMNS[1:]])
HISTORY_SCHEMA = pa.schema([(name, pa.string()) for name in _VERDICT_COLUMNS])
CLUSTER_SCHEMA = pa.schema(
    [
        ("cluster_key", pa.string()),
        ("reviewer", pa.string()),
        ("decision", pa.string()),
        ("groups", pa.list_(pa.list_(pa.string()))),
        ("kept", pa.list_(pa.string())),
        ("note", pa.string()),
        ("decided_at", pa.string()),
    ]
)


@dataclass(frozen=True)
class Control:
    """A pair whose truth is known: ``truth`` is ``replication`` or ``different``, ``row`` a row as of ``matches.parquet``."""

    pair_id: str
    truth: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Stratum:
    """Clips with scores from ``lowest`` to ``highest``; ``size`` of them."""

    lowest: float
    highest: float
    size: int


@dataclass(frozen=True)
class Sample:
    """A random sample of pairs, drawn stratum by stratum.

    Attributes
    ----------
    sample_id
        Same population, strata and seed: same id.
    seed
        Of the draw.
    strata
        The highest scores first.
    rows
        (stratum, place, pair id) in the order of drawing; in each stratum the places count 0, 1, 2 ...
    created
        When it was first drawn, ISO 8601, UTC.
    """

    sample_id: str
    seed: int
    strata: tuple[Stratum, ...]
    rows: tuple[tuple[int, int, str], ...]
    created: str = ""

    @property
    def pair_ids(self) -> list[str]:
        """The pairs in the order in which they should be reviewed."""
        return [pair for _, _, pair in self.rows]


class VerdictStore(Database):
    """The verdicts of one audit or deduplication; threads and processes may use it at the same time."""

    @classmethod
    def open(cls, folder: str | Path) -> VerdictStore:
        """Open ``folder/review.db``, and make it if there is none.

        Raises
        ------
        StoreError
            There is no such folder, or its ``review.db`` is no database of auscult's, or a newer version wrote it.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise StoreError(f"{folder}: is no folder; verdicts belong to the folder of an audit or a deduplication")
        store = cls(folder / REVIEW_DB)
        with store._connection() as connection:  # so that a bad file is said now, not at the first verdict
            connection.execute("SELECT 1")
        return store

    # --- pairs ---

    def add(
        self,
        query_id: str,
        reference_id: str,
        *,
        reviewer: str,
        verdict: str,
        note: str = "",
        event_id: str | None = None,
    ) -> bool:
        """Store a verdict; when this returns, it is on the disk.

        Parameters
        ----------
        query_id, reference_id
            The clips of the pair.
        reviewer
            Name, 1 to 64 visible characters.
        verdict
            One of ``VERDICTS``, or ``WITHDRAWN``: then the reviewer has no verdict on the pair any more.
        note
            Up to 2,000 characters.
        event_id
            Chosen by the sender (a UUID), so that a repeated request is stored once; made here by default.

        Returns
        -------
        bool
            False if this event was stored before.

        Raises
        ------
        ValueError
            An argument is none of these, or ``event_id`` names another verdict.
        StoreError
            The database cannot be written.
        """
        row = (
            event_name(event_id),
            pair_id(query_id, reference_id),
            query_id,
            reference_id,
            reviewer_name(reviewer),
            one_of("verdict", verdict, (*VERDICTS, WITHDRAWN)),
            note_text(note),
        )
        with self._writing() as connection:
            return _insert(connection, "verdicts", row)

    def latest(self, reviewer: str | None = None) -> pa.Table:
        """The verdicts in force: for each pair and reviewer the latest, unless it was withdrawn.

        The latest is that of the latest ``decided_at``, then that stored last; so verdicts that are imported find their place
        in time. Verdicts on control pairs are among them (:meth:`controls` names those pairs).
        """
        where, values = ("WHERE reviewer = ?", (reviewer_name(reviewer),)) if reviewer is not None else ("", ())
        names = ", ".join(LATEST_SCHEMA.names)
        rows = self._read(
            f"SELECT {names} FROM (SELECT *, ROW_NUMBER() OVER "
            f"(PARTITION BY pair_id, reviewer ORDER BY decided_at DESC, id DESC) AS place FROM verdicts {where}) "
            "WHERE place = 1 AND verdict != ? ORDER BY id",
            (*values, WITHDRAWN),
        )
        return _table(rows, LATEST_SCHEMA)

    def decided(self, reviewer: str) -> dict[str, str]:
        """Verdict of one reviewer on each pair that they decided."""
        table = self.latest(reviewer)
        return dict(zip(table["pair_id"].to_pylist(), table["verdict"].to_pylist(), strict=True))

    def history(self) -> pa.Table:
        """Every row ever stored, in the order of storing."""
        return _table(self._read(f"SELECT {', '.join(_VERDICT_COLUMNS)} FROM verdicts ORDER BY id"), HISTORY_SCHEMA)

    def consensus(self) -> dict[str, str]:
        """Verdict of most reviewers of each pair (see ``fields.majority``); control pairs are left out."""
        table, known = self.latest(), self.controls()
        votes: dict[str, Counter[str]] = defaultdict(Counter)
        for pair, verdict in zip(table["pair_id"].to_pylist(), table["verdict"].to_pylist(), strict=True):
            if pair not in known:
                votes[pair][verdict] += 1
        return {pair: majority(count) for pair, count in votes.items()}

    def export_verdicts(self, path: str | Path) -> int:
        """Write every row of :meth:`history` to ``path``, CSV or Parquet by its ending; returns how many.

        Two columns are added for readers: ``counts``, whether the row is the reviewer's verdict in force, and ``control``, the
        truth of a control pair (null, in CSV empty, for all others).
        """
        history, latest, controls = self.history(), self.latest(), self.controls()
        counts = _in_force(history, latest, "pair_id")
        truth = pa.array(
            [controls[pair].truth if pair in controls else None for pair in history["pair_id"].to_pylist()], pa.string()
        )
        write_rows(history.append_column("counts", counts).append_column("control", truth), Path(path))
        return history.num_rows

    def import_verdicts(self, path: str | Path) -> int:
        """Add the verdicts of a CSV or Parquet file, all of them or none; returns how many were new.

        Needed columns: ``query_id, reference_id, reviewer, verdict``; ``event_id, pair_id, note, decided_at`` are taken where
        they are. A file that was imported before adds nothing. Rows with a ``control`` that is none of this folder's are left
        out: they are of another review's controls, and would count as verdicts on what was found.

        Raises
        ------
        ValueError
            A column is missing or unknown, or a row cannot be meant; the message names it.
        StoreError
            The file cannot be read.
        """
        known = self.controls()
        rows = [row if row["control"] is None or row["pair_id"] in known else None for row in read_rows(Path(path))]
        return self._import(Path(path), "verdicts", rows)

    def _import(self, path: Path, table: str, rows: Iterable[dict[str, Any] | None]) -> int:
        added = 0
        with self._writing() as connection:
            for number, row in enumerate(rows, 1):
                if row is None:
                    continue
                columns = _COLUMNS[table] if row["decided_at"] is not None else _COLUMNS[table][:-1]
                try:
                    added += _insert(connection, table, [row[name] for name in columns])
                except ValueError as error:
                    raise ValueError(f"{path}, row {number}: {error}") from None
        return added

    # --- clusters ---

    def add_cluster(
        self,
        key: str,
        *,
        reviewer: str,
        decision: str,
        groups: Sequence[Sequence[str]] = (),
        kept: Sequence[str] = (),
        note: str = "",
        event_id: str | None = None,
    ) -> bool:
        """Store a decision on a cluster of a deduplication, as :meth:`add` does a verdict.

        Parameters
        ----------
        key
            :func:`cluster_key` of the cluster's clips.
        decision
            ``all_one`` (one group), ``split`` (several), ``not_duplicates`` (each clip a group), or ``withdrawn``.
        groups
            The cluster's clips, each in one group of duplicates; empty for ``withdrawn``.
        kept
            The clip to keep of each group.
        reviewer, note, event_id
            As in :meth:`add`.
        """
        check_groups(key, one_of("decision", decision, (*DECISIONS, WITHDRAWN)), groups, kept)
        text = [json.dumps(value, ensure_ascii=False) for value in ([list(group) for group in groups], list(kept))]
        row = (event_name(event_id), key, reviewer_name(reviewer), decision, *text, note_text(note))
        with self._writing() as connection:
            return _insert(connection, "cluster_verdicts", row)

    def latest_clusters(self, reviewer: str | None = None) -> pa.Table:
        """The decisions on clusters that are in force, as :meth:`latest` for verdicts."""
        where, values = ("WHERE reviewer = ?", (reviewer_name(reviewer),)) if reviewer is not None else ("", ())
        rows = self._read(
            f"SELECT {_quoted(CLUSTER_SCHEMA.names)} FROM "
            "(SELECT *, ROW_NUMBER() OVER (PARTITION BY cluster_key, reviewer ORDER BY decided_at DESC, id DESC) AS place "
            f"FROM cluster_verdicts {where}) WHERE place = 1 AND decision != ? ORDER BY id",
            (*values, WITHDRAWN),
        )
        return _table([(*row[:3], json.loads(row[3]), json.loads(row[4]), *row[5:]) for row in rows], CLUSTER_SCHEMA)

    def export_clusters(self, path: str | Path) -> int:
        """Write every decision on a cluster ever stored, as :meth:`export_verdicts` does verdicts; returns how many.

        ``groups`` and ``kept`` are lists as JSON; ``counts`` tells whether the row is the reviewer's decision in force.
        """
        rows = self._read(f"SELECT {_quoted(_CLUSTER_COLUMNS)} FROM cluster_verdicts ORDER BY id")
        history = _table(rows, pa.schema([(name, pa.string()) for name in _CLUSTER_COLUMNS]))
        write_rows(history.append_column("counts", _in_force(history, self.latest_clusters(), "cluster_key")), Path(path))
        return history.num_rows

    def import_clusters(self, path: str | Path) -> int:
        """Add the decisions of a file as :meth:`export_clusters` writes it, all or none; returns how many were new.

        Raises
        ------
        ValueError, StoreError
            As :meth:`import_verdicts`.
        """
        return self._import(Path(path), "cluster_verdicts", read_cluster_rows(Path(path)))

    # --- controls and samples ---

    def add_controls(self, controls: Iterable[Control]) -> int:
        """Store pairs whose truth is known; returns how many were new."""
        rows = [
            (control.pair_id, one_of("truth", control.truth, TRUTHS), json.dumps(control.row, ensure_ascii=False))
            for control in controls
        ]
        with self._writing() as connection:
            before = connection.total_changes
            connection.executemany("INSERT OR IGNORE INTO controls (pair_id, truth, row) VALUES (?, ?, ?)", rows)
            return connection.total_changes - before

    def controls(self) -> dict[str, Control]:
        """The control pairs by their pair id."""
        rows = self._read("SELECT pair_id, truth, row FROM controls ORDER BY pair_id")
        return {pair: Control(pair, truth, json.loads(row)) for pair, truth, row in rows}

    def add_sample(self, sample: Sample) -> Sample:
        """Store a drawn sample, or what it adds to one that was drawn before; returns the whole as stored."""
        strata = json.dumps([vars(stratum) for stratum in sample.strata])
        rows = [(sample.sample_id, *row) for row in sample.rows]
        with self._writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO samples (sample_id, seed, created, strata) VALUES (?, ?, ?, ?)",
                (sample.sample_id, sample.seed, now(), strata),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO sample_rows (sample_id, stratum, place, pair_id) VALUES (?, ?, ?, ?)", rows
            )
        return next(stored for stored in self.samples() if stored.sample_id == sample.sample_id)

    def samples(self) -> list[Sample]:
        """The samples drawn so far, the first first."""
        rows: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for sample_id, *row in self._read("SELECT sample_id, stratum, place, pair_id FROM sample_rows ORDER BY id"):
            rows[sample_id].append((row[0], row[1], row[2]))
        return [
            Sample(name, seed, tuple(Stratum(**stratum) for stratum in json.loads(strata)), tuple(rows[name]), created)
            for name, seed, created, strata in self._read("SELECT sample_id, seed, created, strata FROM samples ORDER BY id")
        ]


# --- rows -----------------------------------------------------------------------------------------------------------


def _insert(connection: sqlite3.Connection, table: str, row: Sequence[str]) -> bool:
    """Insert a row; where its last column, ``decided_at``, is not given, that is now.

    False if the event is there already; then it must be the same. Time never runs back for a reviewer and a pair, whatever the
    clock does: or an undo could come to lie before what it undoes.
    """
    columns = _COLUMNS[table]
    names, n = _quoted(columns), len(columns) - 1
    known = connection.execute(f"SELECT {names} FROM {table} WHERE event_id = ?", row[:1]).fetchone()
    if known is not None:
        if tuple(known[:n]) != tuple(row[:n]):
            raise ValueError(f"event_id {row[0]!r} was used for another verdict; make a new UUID for each")
        return False
    if len(row) == n:
        subject = (columns[1], "reviewer")
        values = [row[columns.index(name)] for name in subject]
        where = " AND ".join(f"{name} = ?" for name in subject)
        last = connection.execute(f"SELECT MAX(decided_at) FROM {table} WHERE {where}", values).fetchone()[0]
        row = (*row, max(now(), last or ""))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", row)
    return True


def _in_force(history: pa.Table, latest: pa.Table, subject: str) -> pa.Array:
    """Of each row of a history whether it is the reviewer's last word on its subject, and not withdrawn."""
    rows = list(zip(*(history[name].to_pylist() for name in (subject, "reviewer", "decided_at")), strict=True))
    last = {row[:2]: at for at, row in sorted(enumerate(rows), key=lambda item: (item[1][2], item[0]))}
    alive = set(zip(latest[subject].to_pylist(), latest["reviewer"].to_pylist(), strict=True))
    return pa.array([last[row[:2]] == at and row[:2] in alive for at, row in enumerate(rows)], pa.bool_())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)
