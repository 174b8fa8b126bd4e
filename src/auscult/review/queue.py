"""What there is to review: the pairs of an audit or a deduplication, and their order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..audit import KIND as AUDIT_KIND
from ..audit import MATCHES, QUERIES
from ..duplicates import KIND as DEDUP_KIND
from ..duplicates import PAIRS
from ..errors import StoreError
from ..folders import REVIEW_DB, read_card
from .fields import pair_id
from .verdicts import Control, Sample, VerdictStore

__all__ = ["ORDERS", "ReviewSet", "load_pairs", "order_pairs", "other_pairs", "pair_row"]

ORDERS = ("score", "uncertain", "random")
CONTROL_SPACING = 10  # pairs to a control: often enough to measure a reviewer in an hour, too seldom to weary one
SIDES = {"first": "query", "second": "reference"}
# what a row of matches.parquet may lack: spans and the like are the two-stage detector's
_OPTIONAL = ("rank", "bias", "p_value", "lag_s", "descriptor", "tempo", "pitch_semitones", "spans")
_OPTIONAL_SIDE = ("start_s", "end_s", "caption", "offset_s", "duration_s", "display_path")


@dataclass(frozen=True)
class ReviewSet:
    """The pairs of a folder to review, as columns of equal length; what one row holds beyond them is read when it is asked for.

    Attributes
    ----------
    path, card
        The folder.
    kind
        ``audit`` or ``dedup``.
    tau
        Threshold of the scores.
    pair_ids, query_ids, reference_ids
        The listed pairs: of an audit one for each query that has a match, of a deduplication those not counted as duplicates.
    scores
        (n,) NaN where a pair has none.
    flagged
        (n,) bool.
    rows
        (n,) where in the file each pair stands.
    controls
        Pairs whose truth is known, by pair id.
    """

    path: Path
    card: dict[str, Any]
    kind: str
    tau: float
    pair_ids: list[str]
    query_ids: list[str]
    reference_ids: list[str]
    scores: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]
    controls: Mapping[str, Control] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pair_ids)

    @cached_property
    def place(self) -> dict[str, int]:
        """Where in the columns each listed pair stands."""
        return {pair: place for place, pair in enumerate(self.pair_ids)}

    @cached_property
    def table(self) -> pa.Table:
        """All rows of the file, whole, with the names of ``matches.parquet``."""
        table = pq.read_table(self.path / (MATCHES if self.kind == AUDIT_KIND else PAIRS))
        return table.rename_columns([_as_in_matches(name) for name in table.column_names])

    @cached_property
    def rows_of_query(self) -> dict[str, list[int]]:
        """Rows of the file of each query, best first."""
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(self.table["query_id"].to_pylist()):
            rows.setdefault(query, []).append(row)
        if "rank" in self.table.column_names:
            rank = self.table["rank"].to_numpy()
            rows = {query: sorted(these, key=lambda row: int(rank[row])) for query, these in rows.items()}
        return rows

    @cached_property
    def every_row(self) -> dict[str, int]:
        """Row of the file of every pair, those of lower rank included."""
        ids = zip(self.table["query_id"].to_pylist(), self.table["reference_id"].to_pylist(), strict=True)
        return {pair_id(*pair): row for row, pair in enumerate(ids)}

    @cached_property
    def clips(self) -> dict[tuple[str, str], tuple[float | None, float | None, str | None]]:
        """Of (role, clip id): where in its file the clip starts, its length and caption, as far as the folder knows."""
        facts: dict[tuple[str, str], tuple[float | None, float | None, str | None]] = {}
        if self.kind == AUDIT_KIND:
            for row in _columns(self.path / QUERIES, ("query_id", "duration_s", "caption")):
                facts["query", row[0]] = (None, row[1], row[2])
        stores: dict[str, tuple[str, ...]] = {"generated": ("query",), "references": ("reference",)}
        if self.kind == DEDUP_KIND:
            stores = {"corpus": ("query", "reference"), "against": ("query", "reference")}
        for store, roles in stores.items():
            path = self.path / "stores" / store / "clips.parquet"
            if path.is_file():
                for clip, *values in _columns(path, ("clip_id", "start_s", "duration_s", "caption")):
                    facts |= {(role, clip): (values[0], values[1], values[2]) for role in roles}
        return facts


def load_pairs(folder: str | Path) -> ReviewSet:
    """Open the pairs of an audit or a deduplication.

    An audit lists one pair for each query that has a match: its best match (rank 1), or, where only a match of lower rank is
    flagged (identical samples, whatever the score), the best of those. A deduplication lists what was not counted.

    Raises
    ------
    StoreError
        The folder is neither, or not complete.
    """
    folder = Path(folder)
    card = read_card(folder)
    readers = {AUDIT_KIND: _listed_matches, DEDUP_KIND: _listed_pairs}
    if card["kind"] not in readers:
        raise StoreError(f"{folder}: pairs to review are in an audit or a dedup, this is a {card['kind']}")
    try:
        table, rows = readers[card["kind"]](folder)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StoreError(f"{folder}: its table of pairs cannot be read ({error}); make the {card['kind']} again") from error
    queries, references = table["query_id"].to_pylist(), table["reference_id"].to_pylist()
    controls: dict[str, Control] = {}
    if (folder / REVIEW_DB).exists():
        with VerdictStore.open(folder) as store:
            controls = store.controls()
    return ReviewSet(
        path=folder,
        card=card,
        kind=card["kind"],
        tau=float(card["threshold"]["tau"]),
        pair_ids=[pair_id(query, reference) for query, reference in zip(queries, references, strict=True)],
        query_ids=queries,
        reference_ids=references,
        scores=_numbers(table["score"]),
        flagged=_flags(table["flagged"]),
        rows=rows,
        controls=controls,
    )


def _listed_matches(folder: Path) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    table = pq.read_table(folder / MATCHES, columns=["query_id", "reference_id", "rank", "score", "flagged"])
    query = pc.dictionary_encode(table["query_id"].combine_chunks()).indices.to_numpy()
    order = np.lexsort((table["rank"].to_numpy(), ~_flags(table["flagged"]), query))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(query[order]) != 0
    rows = order[first].astype(np.int64)
    return table.take(pa.array(rows)), rows


def _listed_pairs(folder: Path) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    table = pq.read_table(folder / PAIRS, columns=["first_id", "second_id", "score", "duplicate"])
    rows = np.flatnonzero(~_flags(table["duplicate"])).astype(np.int64)
    return table.take(pa.array(rows)).rename_columns(["query_id", "reference_id", "score", "flagged"]), rows


def _as_in_matches(name: str) -> str:
    end, _, rest = name.partition("_")
    return f"{SIDES[end]}_{rest}" if end in SIDES else {"duplicate": "flagged"}.get(name, name)


def _flags(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)  # a null becomes NaN


def _columns(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    table = pq.read_table(path, columns=list(names))
    return zip(*(table[name].to_pylist() for name in names), strict=True)


# --- one pair -------------------------------------------------------------------------------------------------------


def pair_row(review_set: ReviewSet, pair: str) -> dict[str, Any]:
    """All that is known of one pair: the columns of ``matches.parquet``, None where there is no such thing, and more.

    More are ``pair_id``, ``query_duration_s`` and ``reference_duration_s`` (None if unknown), ``query_display_path`` and
    ``reference_display_path``: what a reviewer may be shown, since the path of a control would give it away.

    Raises
    ------
    StoreError
        The folder holds no such pair.
    """
    if pair in review_set.controls:
        row = dict(review_set.controls[pair].row)
        row["query_path"] = str(review_set.path.absolute() / row["query_path"])
    else:
        place = review_set.place.get(pair)
        at = review_set.every_row.get(pair) if place is None else int(review_set.rows[place])
        if at is None:
            raise StoreError(f"{review_set.path}: holds no pair {pair!r}; it may be of another audit, or of one made anew")
        row = review_set.table.slice(at, 1).to_pylist()[0]
    row = {name: row.get(name) for name in _OPTIONAL} | row | {"pair_id": pair}
    for role in SIDES.values():
        row = {f"{role}_{name}": row.get(f"{role}_{name}") for name in _OPTIONAL_SIDE} | row
        facts = review_set.clips.get((role, row[f"{role}_id"]), (None, None, None))
        for name, value in zip(("offset_s", "duration_s", "caption"), facts, strict=True):
            if row[f"{role}_{name}"] is None:
                row[f"{role}_{name}"] = value
        row[f"{role}_offset_s"] = row[f"{role}_offset_s"] or 0.0
        row[f"{role}_display_path"] = row[f"{role}_display_path"] or row[f"{role}_path"]
    return row


def other_pairs(review_set: ReviewSet, pair: str) -> list[str]:
    """The other pairs of the same query, best first; of a control there are none."""
    if pair in review_set.controls:
        return []
    row = pair_row(review_set, pair)
    references = review_set.table["reference_id"]
    these = [pair_id(row["query_id"], references[at].as_py()) for at in review_set.rows_of_query[row["query_id"]]]
    return [other for other in these if other != pair]


# --- order ----------------------------------------------------------------------------------------------------------


def order_pairs(
    review_set: ReviewSet,
    *,
    order: str = "score",
    seed: int = 0,
    skip: Collection[str] = (),
    sample: Sample | None = None,
    controls: bool = False,
) -> list[str]:
    """Pair ids in the order of reviewing.

    Parameters
    ----------
    order
        ``score`` (highest first), ``uncertain`` (closest to tau first) or ``random``.
    seed
        Of the random order, and of the controls' places.
    skip
        Pairs to leave out, such as those that a reviewer decided; the order of the others does not depend on it.
    sample
        Review this sample instead, in the order of drawing, so that any part of it is a sample, too.
    controls
        Mix the control pairs in: by the scores that they show, or, in a random order and in a sample, one at a random place
        of every ten pairs from the start, of fewer if there are few.
    """
    if order not in ORDERS:
        raise ValueError(f"order should be one of {', '.join(ORDERS)}, got {order!r}")
    rng = np.random.default_rng(seed)
    if sample is not None:
        pairs = sample.pair_ids
    else:
        names, scores = review_set.pair_ids, review_set.scores
        if controls and order != "random":  # where their scores put them: elsewhere they would stand out
            names = [*names, *review_set.controls]
            shown = [control.row.get("score") for control in review_set.controls.values()]
            scores = np.concatenate([scores, [np.nan if score is None else score for score in shown]])
        keys = {"score": -scores, "uncertain": np.abs(scores - review_set.tau)}
        key = rng.random(len(names)) if order == "random" else keys[order]
        by_name = np.argsort(np.asarray(names, dtype=np.str_), kind="stable")  # among equals; NaN sorts last
        pairs = [names[at] for at in by_name[np.argsort(key[by_name], kind="stable")].tolist()]
    if controls and (order == "random" or sample is not None):
        pairs = _mixed(pairs, sorted(review_set.controls), np.random.default_rng([seed, 1]))
    left_out = frozenset(skip)
    return [pair for pair in pairs if pair not in left_out]


def _mixed(pairs: list[str], controls: list[str], rng: np.random.Generator) -> list[str]:
    """One control at a random place of each stretch of ten pairs; of shorter stretches, if there are few pairs."""
    if not controls:
        return pairs
    spacing = min(float(CONTROL_SPACING), max(len(pairs), 1) / len(controls))
    places = (np.arange(len(controls)) + rng.random(len(controls))) * spacing
    shuffled = [controls[at] for at in rng.permutation(len(controls)).tolist()]
    keyed = [(place + 0.5, pair) for place, pair in enumerate(pairs)] + list(zip(places.tolist(), shuffled, strict=True))
    return [pair for _, pair in sorted(keyed)]
