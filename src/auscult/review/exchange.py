"""Verdicts as files for other programs: CSV or Parquet, out and in again."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import StoreError
from ..folders import atomic_file, write_table
from .fields import event_name, note_text, one_of, pair_id, reviewer_name, text_of, time_text
from .schema import VERDICTS, WITHDRAWN

NEEDED = ("query_id", "reference_id", "reviewer", "verdict")
# counts: whether the row is in force; control: the pair's truth if it is known. Both are for readers: import derives them anew.
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
        ``event_id, pair_id, query_id, reference_id, reviewer, verdict, note, decided_at``.

    Raises
    ------
    ValueError
        The ending is unknown, a column is missing or unknown, or a row holds what cannot be meant; the message names the row.
    StoreError
        The file cannot be read.
    """
    _check_ending(path)
    try:
        columns, rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except (OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    _check_columns(path, columns)
    checked, seen = [], dict[str, int]()
    for number, row in enumerate(rows, 1):
        try:
            checked.append(_checked(row, seen))
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


def _check_columns(path: Path, columns: list[str]) -> None:
    missing = [name for name in NEEDED if name not in columns]
    unknown = [name for name in columns if name not in ACCEPTED]
    if missing or unknown or len(set(columns)) != len(columns):
        hint = "; the columns should be separated by commas" if len(columns) == 1 and ";" in columns[0] else ""
        said = [f"{what} {', '.join(map(repr, names))}" for what, names in (("without", missing), ("with", unknown)) if names]
        raise ValueError(
            f"{path}: expected the columns {', '.join(NEEDED)} and of {', '.join(ACCEPTED[len(NEEDED) :])} what there is, "
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
