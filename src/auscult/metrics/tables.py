"""Read anyone's predictions and truth of copy detection from CSV or Parquet, and write them.

One row per span, or one row per pair where there are no spans. auscult's own ``matches.parquet`` is such a table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import TableError
from .copy_detection import Prediction, Span, Truth

SPAN_COLUMNS = ("query_start_s", "query_end_s", "reference_start_s", "reference_end_s")
PREDICTION_COLUMNS = ("query_id", "reference_id", "score")
TRUTH_COLUMNS = ("query_id", "reference_id")
_OPTIONAL_TRUTH_COLUMNS = ("source", "group", "kind")

Row = Mapping[str, Any]


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions.

    Parameters
    ----------
    path
        CSV or Parquet with the columns ``query_id, reference_id, score`` and optionally ``query_start_s, query_end_s,
        reference_start_s, reference_end_s`` (seconds; all four or none in a row). Other columns are ignored. Several rows
        of one pair are its several spans; the pair's score is the largest of theirs.

    Returns
    -------
    list of Prediction
        One per pair, in the order of first appearance.

    Raises
    ------
    TableError
        A column is missing, a value is empty or no number, or the file is not what its suffix says.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "predictions.csv"
    >>> _ = path.write_text("query_id,reference_id,score\\nq1,r7,0.93\\n")
    >>> read_predictions(path)
    [Prediction(query_id='q1', reference_id='r7', score=0.93, spans=())]
    """
    path = Path(path)
    found: dict[tuple[str, str], tuple[float, tuple[Span, ...]]] = {}
    for where, row in _rows(path, PREDICTION_COLUMNS):
        pair = _name(row, "query_id", where), _name(row, "reference_id", where)
        score, spans = found.get(pair, (-math.inf, ()))
        found[pair] = max(score, _number(row, "score", where)), spans + _span(row, where)
    return [Prediction(*pair, score, spans) for pair, (score, spans) in found.items()]


def read_truth(path: str | Path) -> list[Truth]:
    """Read what queries copy.

    Parameters
    ----------
    path
        CSV or Parquet with the columns ``query_id, reference_id`` (empty for a negative) and optionally ``source`` (else
        each query is a source of its own), ``group``, ``kind`` and the four columns of a span. Several rows of one query
        are its several spans and agree in all else.

    Returns
    -------
    list of Truth
        One per query, in the order of first appearance.

    Raises
    ------
    TableError
        As for :func:`read_predictions`, or rows of one query contradict each other.
    """
    path = Path(path)
    facts: dict[str, tuple[str | None, str, str, str]] = {}
    spans: dict[str, tuple[Span, ...]] = {}
    for where, row in _rows(path, TRUTH_COLUMNS):
        query_id = _name(row, "query_id", where)
        reference_id = None if _empty(row["reference_id"]) else _name(row, "reference_id", where)
        source, group, kind = (
            "" if _empty(row.get(column)) else _name(row, column, where) for column in _OPTIONAL_TRUTH_COLUMNS
        )
        fact = (reference_id, source or query_id, group, kind)
        if facts.setdefault(query_id, fact) != fact:
            raise TableError(
                f"{where}: query {query_id!r} is {fact}, but an earlier row says {facts[query_id]} (reference_id, source, "
                "group, kind); a query copies one reference, and several rows of it are its spans"
            )
        spans[query_id] = spans.get(query_id, ()) + _span(row, where)
    return [Truth(query_id, *fact, spans[query_id]) for query_id, fact in facts.items()]


def write_predictions(path: str | Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions as CSV or Parquet, by the suffix; :func:`read_predictions` reads them back."""
    rows = [
        {"query_id": p.query_id, "reference_id": p.reference_id, "score": float(p.score), **_span_columns(span)}
        for p in predictions
        for span in p.spans or (None,)
    ]
    text = pa.string()
    _write(Path(path), rows, [("query_id", text), ("reference_id", text), ("score", pa.float64())])


def write_truth(path: str | Path, truths: Sequence[Truth]) -> None:
    """Write what queries copy as CSV or Parquet, by the suffix; :func:`read_truth` reads it back."""
    rows = [
        {
            "query_id": t.query_id,
            "reference_id": t.reference_id,
            "source": t.source,
            "group": t.group,
            "kind": t.kind,
            **_span_columns(span),
        }
        for t in truths
        for span in t.spans or (None,)
    ]
    _write(Path(path), rows, [(name, pa.string()) for name in (*TRUTH_COLUMNS, *_OPTIONAL_TRUTH_COLUMNS)])


def _span_columns(span: Span | None) -> dict[str, float | None]:
    return {column: None if span is None else float(getattr(span, column)) for column in SPAN_COLUMNS}


def _write(path: Path, rows: list[dict[str, Any]], columns: list[tuple[str, pa.DataType]]) -> None:
    schema = pa.schema([*columns, *((column, pa.float64()) for column in SPAN_COLUMNS)])
    if _is_parquet(path):
        pq.write_table(pa.Table.from_pylist(rows, schema), path)
        return
    with open(path, "w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, schema.names)
        writer.writeheader()
        writer.writerows(rows)


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() not in {".csv", ".parquet"}:
        raise TableError(f"{path}: expected a file that ends in .csv or .parquet")
    return path.suffix.lower() == ".parquet"


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield ``("FILE, row N", row)``; rows are counted from 1, the header not included."""
    if _is_parquet(path):
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise TableError(f"{path}: cannot be read as Parquet ({error})") from error
        columns, rows = table.column_names, iter(table.to_pylist())
        _check_columns(path, columns, needed)
        for number, row in enumerate(rows, 1):
            yield f"{path.name}, row {number}", row
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, strict=True)
            _check_columns(path, reader.fieldnames or [], needed)
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    raise TableError(f"{path.name}, row {number}: expected {len(reader.fieldnames or [])} fields")
                yield f"{path.name}, row {number}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error


def _check_columns(path: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in columns]
    if missing:
        hint = "; fields are separated by commas" if len(columns) == 1 and ";" in columns[0] else ""
        raise TableError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, columns)) or 'none'}{hint}")
    spans = [column for column in SPAN_COLUMNS if column in columns]
    if spans and len(spans) < len(SPAN_COLUMNS):
        raise TableError(f"{path}: a span needs the columns {', '.join(SPAN_COLUMNS)}, but only {', '.join(spans)} are there")


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _name(row: Row, column: str, where: str) -> str:
    value = row[column]
    if _empty(value):
        raise TableError(f"{where}: {column} is empty")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        # pandas turns whole numbers with gaps into floats, and '12' would no longer equal '12.0'
        raise TableError(f"{where}: {column} should be text or a whole number, got {value!r}")
    return str(value)


def _number(row: Row, column: str, where: str) -> float:
    try:
        number = float(row[column])
    except (TypeError, ValueError):
        raise TableError(f"{where}: {column} should be a number, got {row[column]!r}") from None
    if not math.isfinite(number):
        raise TableError(f"{where}: {column} should be finite, got {row[column]!r}; leave out pairs that have none")
    return number


def _span(row: Row, where: str) -> tuple[Span, ...]:
    empty = [_empty(row.get(column)) for column in SPAN_COLUMNS]
    if all(empty):
        return ()
    if any(empty):
        raise TableError(f"{where}: a span needs all of {', '.join(SPAN_COLUMNS)}; {SPAN_COLUMNS[empty.index(True)]} is empty")
    span = Span(*(_number(row, column, where) for column in SPAN_COLUMNS))
    if span.query_start_s >= span.query_end_s or span.reference_start_s >= span.reference_end_s:
        raise TableError(f"{where}: a span should start before it ends, in seconds, got {span}")
    return (span,)
