"""Verdicts and decisions on clusters as files for other programs: CSV or Parquet, out and in again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError
from ..folders import atomic_file, write_table
from .fields import check_groups, event_name, note_text, one_of, pair_id, reviewer_name, text_of, time_text
from .schema import DECISIONS, VERDICTS, WITHDRAWN

NEEDED = ("query_id", "reference_id", "reviewer", "verdict")
CLUSTERS_NEEDED = ("cluster_key", "reviewer", "decision", "groups", "kept")
CLUSTERS_ACCEPTED = (*CLUSTERS_NEEDED, "event_id", "note", "decided_at", "counts")
# counts: whether the row is in force, which import finds out anew; control: the pair's truth if it is known
ACCEPTED = (*NEEDED, "event_id", "pair_id", "note", "decided_at", "counts", "control")
SKEW = timedelta(days=1)  # between the clocks of two machines; a date further ahead is a mistake
FORMATS = (".csv", ".parquet")


def write_rows(table: pa.Table, path: Path) -> None:
    """Write a table as CSV (UTF-8, RFC 4180) or Parquet, by the name's ending, atomically.

    Raises
    ------
    ValueError
        The ending is neither.
    StoreError
        The file cannot be written.
    """
    _check_ending(path)
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent}: is no folder; make it first, or correct the path")
    try:
        if path.suffix.lower() == ".parquet":
            write_table(path, table)
            return
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\r\n", quoting=csv.QUOTE_MINIMAL)
        writer.writerow(table.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
        with atomic_file(path) as handle:
            handle.write(text.getvalue().encode("utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read verdicts from CSV or Parquet, and check every row.

    A row without ``event_id`` gets one from its content, and from how many equal rows came before it; so the same file gives
    the same events each time it is read. ``decided_at`` is None where the file does not say.

    Returns
    -------
    list of dict
        ``event_id, pair_id, query_id, reference_id, reviewer, verdict, note, decided_at`` and ``control``.

    Raises
    ------
    ValueError
        The ending is unknown, a column is missing or unknown, or a row holds what cannot be meant; the message names the row.
    StoreError
        The file cannot be read.
    """
    return _read(path, NEEDED, ACCEPTED, _checked)


def read_cluster_rows(path: Path) -> list[dict[str, Any]]:
    """Read decisions on clusters as :func:`read_rows` reads verdicts; ``groups`` and ``kept`` are lists as JSON.

    Returns
    -------
    list of dict
        ``event_id, cluster_key, reviewer, decision, groups, kept, note, decided_at``.
    """
    return _read(path, CLUSTERS_NEEDED, CLUSTERS_ACCEPTED, _checked_cluster)


def clusters_file(path: Path) -> Path:
    """Where the decisions on clusters lie that belong to a file of verdicts: ``NAME.clusters.csv`` of ``NAME.csv``."""
    return path if is_clusters_file(path) else path.with_name(f"{path.stem}.clusters{path.suffix}")


def is_clusters_file(path: Path) -> bool:
    """Whether a file of this name holds decisions on clusters."""
    return Path(path.stem).suffix.lower() == ".clusters"


def _read(
    path: Path,
    needed: tuple[str, ...],
    accepted: tuple[str, ...],
    check: Callable[[Mapping[str, Any], dict[str, int]], dict[str, Any]],
) -> list[dict[str, Any]]:
    _check_ending(path)
    try:
        columns, rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    _check_columns(path, columns, needed, accepted)
    checked, seen = [], dict[str, int]()
    for number, row in enumerate(rows, 1):
        try:
            checked.append(check(row, seen))
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from None
    return checked


def _check_ending(path: Path) -> None:
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"verdicts are exchanged as {' or '.join(FORMATS)}, got {path.name!r}; give the file such a name")


def _read_csv(path: Path) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    text = path.read_bytes().decode("utf-8-sig")  # spreadsheets put a mark before the text
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns = next(reader, [])
    rows = []
    for number, cells in enumerate((cells for cells in reader if cells), 1):
        if len(cells) != len(columns):
            raise ValueError(
                f"{path}, row {number}: expected {len(columns)} cells, got {len(cells)}; put text with commas in quotes"
            )
        rows.append(dict(zip(columns, cells, strict=True)))
    return columns, rows


def _read_parquet(path: Path) -> tuple[list[str], Iterable[Mapping[str, Any]]]:
    table = pq.read_table(path)
    return table.column_names, table.to_pylist()


def _check_columns(path: Path, columns: list[str], needed: tuple[str, ...], accepted: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in columns]
    unknown = [name for name in columns if name not in accepted]
    if missing or unknown or len(set(columns)) != len(columns):
        hint = "; the columns should be separated by commas" if len(columns) == 1 and ";" in columns[0] else ""
        said = [f"{what} {', '.join(map(repr, names))}" for what, names in (("without", missing), ("with", unknown)) if names]
        raise ValueError(
            f"{path}: expected the columns {', '.join(needed)} and of {', '.join(accepted[len(needed) :])} what there is, "
            f"got a table {' and '.join(said) or 'that names a column twice'}{hint}"
        )


def _checked(row: Mapping[str, Any], seen: dict[str, int]) -> dict[str, Any]:
    text = {name: text_of(name, row[name]) for name in NEEDED}
    verdict = one_of("verdict", text["verdict"].strip(), (*VERDICTS, WITHDRAWN))
    pair = pair_id(text["query_id"], text["reference_id"])
    if row.get("pair_id") not in (None, "", pair):
        raise ValueError(f"pair_id {row['pair_id']!r} is not that of these clips ({pair}); leave the column out")
    checked = {
        "pair_id": pair,
        "query_id": text["query_id"],
        "reference_id": text["reference_id"],
        "reviewer": reviewer_name(text["reviewer"]),
        "verdict": verdict,
        "note": note_text(row.get("note") or ""),
        "decided_at": _moment(row.get("decided_at")),
    }
    event = row.get("event_id")
    event = event_name(event) if event else _event_of(checked, seen)
    return {"event_id": event, **checked, "control": row.get("control") or None}


def _checked_cluster(row: Mapping[str, Any], seen: dict[str, int]) -> dict[str, Any]:
    key, decision = text_of("cluster_key", row["cluster_key"]), one_of("decision", row["decision"], (*DECISIONS, WITHDRAWN))
    try:
        groups, kept = (json.loads(row[name] or "[]") for name in ("groups", "kept"))
        sound = all(isinstance(clip, str) for group in [*groups, kept] for clip in group)
        sound &= all(isinstance(group, list) for group in [*groups, kept])
    except (ValueError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError('groups and kept should be lists as JSON, such as [["a.wav", "b.wav"]] and ["a.wav"]')
    check_groups(key, decision, groups, kept)
    checked = {
        "cluster_key": key,
        "reviewer": reviewer_name(row["reviewer"]),
        "decision": decision,
        "groups": json.dumps(groups, ensure_ascii=False),
        "kept": json.dumps(kept, ensure_ascii=False),
        "note": note_text(row.get("note") or ""),
        "decided_at": _moment(row.get("decided_at")),
    }
    event = row.get("event_id")
    return {"event_id": event_name(event) if event else _event_of(checked, seen), **checked}


def _event_of(checked: Mapping[str, Any], seen: dict[str, int]) -> str:
    content = "\0".join(str(value) for value in checked.values())
    seen[content] = seen.get(content, 0) + 1
    return "import-" + sha256(f"{content}\0{seen[content]}".encode()).hexdigest()[:32]


def _moment(value: Any) -> str | None:
    if value is None or value == "":
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"decided_at should be a time like 2026-01-31T12:00:00Z, got {value!r}") from None
    if moment > datetime.now(UTC) + SKEW:
        raise ValueError(f"decided_at lies in the future: {value!r}; correct it, or leave it empty")
    return time_text(moment)
