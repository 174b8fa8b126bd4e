"""What the two-stage detector has found, as the tables that any comparison gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from .alignment.spans import Alignment, MatchSpan
from .calibration import conformal_p_values
from .levels import LevelSet
from .search import DoubleArray


@dataclass(frozen=True)
class Match:
    """One candidate of a query: its row, its score and parts, and where to look for spans."""

    reference: int
    score: float
    halves: tuple[float, float]
    whole: float
    usual: float
    hypothesis: int
    query_start: int
    reference_start: int


SPAN_TYPE = pa.list_(
    pa.struct(
        [(name, pa.float64()) for name in ("query_start_s", "query_end_s", "reference_start_s", "reference_end_s", "evidence")]
    )
)


def _flat(found: list[list[Match]]) -> Iterator[tuple[int, int, Match]]:
    for row, matches in enumerate(found):
        for rank, match in enumerate(matches, 1):
            yield row, rank, match


def matches_table(
    found: list[list[Match]],
    located: list[list[Alignment]],
    generated: LevelSet,
    references: LevelSet,
    null_top: DoubleArray,
    tau: float,
    spec: str,
) -> pa.Table:
    flat = list(_flat(found))
    query = generated.clips.take(pa.array([row for row, _, _ in flat], pa.int64()))
    reference = references.clips.take(pa.array([match.reference for _, _, match in flat], pa.int64()))
    scores = np.array([match.score for _, _, match in flat])
    alignments = [located[row][rank - 1] for row, rank, _ in flat]
    ends = zip(query["duration_s"].to_pylist(), reference["duration_s"].to_pylist(), strict=True)
    # a frame reaches beyond its center, and so a span may reach a few milliseconds beyond its clip
    all_spans = [[_within(span, *lengths) for span in a.spans] for a, lengths in zip(alignments, ends, strict=True)]
    strongest = [max(spans, key=lambda span: span.evidence) if spans else None for spans in all_spans]

    def times(name: str) -> pa.Array:
        return pa.array([None if span is None else getattr(span, name) for span in strongest], pa.float64())

    def numbers(values: list[float]) -> pa.Array:
        return pa.array(values, pa.float64())

    return pa.table(
        {
            "query_id": query["clip_id"],
            "query_path": query["path"],
            "reference_id": reference["clip_id"],
            "reference_path": reference["path"],
            "rank": pa.array([rank for _, rank, _ in flat], pa.int32()),
            "similarity": numbers([match.whole for _, _, match in flat]),
            "bias": numbers([match.usual for _, _, match in flat]),
            "score": numbers(scores.tolist()),
            "p_value": numbers(conformal_p_values(scores, null_top).tolist()),
            "flagged": pa.array((scores >= tau).tolist(), pa.bool_()),
            "query_start_s": times("query_start_s"),
            "query_end_s": times("query_end_s"),
            "reference_start_s": times("reference_start_s"),
            "reference_end_s": times("reference_end_s"),
            "lag_s": pa.array([alignment.lag_s for alignment in alignments], pa.float64(), from_pandas=True),
            "descriptor": pa.array([spec] * len(flat), pa.string()),
            "query_caption": query["caption"],
            "reference_caption": reference["caption"],
            "query_offset_s": query["start_s"],
            "reference_offset_s": reference["start_s"],
            "score_whole": numbers([match.halves[0] for _, _, match in flat]),
            "score_stretch": numbers([match.halves[1] for _, _, match in flat]),
            "tempo": numbers([alignment.tempo for alignment in alignments]),
            "pitch_semitones": numbers([alignment.pitch for alignment in alignments]),
            "spans": pa.array([[vars(span) for span in spans] for spans in all_spans], SPAN_TYPE),
        }
    )


def _within(span: MatchSpan, query_s: float, reference_s: float) -> MatchSpan:
    return replace(span, query_end_s=min(span.query_end_s, query_s), reference_end_s=min(span.reference_end_s, reference_s))


def queries_table(
    found: list[list[Match]], generated: LevelSet, references: LevelSet, p_values: DoubleArray, tau: float
) -> pa.Table:
    best = [matches[0] if matches else None for matches in found]
    ids = references.clips["clip_id"]
    clips = generated.clips
    return pa.table(
        {
            "query_id": clips["clip_id"],
            "path": clips["path"],
            "caption": clips["caption"],
            "duration_s": clips["duration_s"],
            "flags": clips["flags"],
            "n_windows": clips["n_windows"],
            "reference_id": pa.array([None if m is None else ids[m.reference].as_py() for m in best], pa.string()),
            "similarity": pa.array([None if m is None else m.whole for m in best], pa.float64()),
            "bias": pa.array([None if m is None else m.usual for m in best], pa.float64()),
            "score": pa.array([None if m is None else m.score for m in best], pa.float64()),
            "p_value": pa.array([None if m is None else p for m, p in zip(best, p_values, strict=True)], pa.float64()),
            "flagged": pa.array([m is not None and m.score >= tau for m in best], pa.bool_()),
        }
    )


def training_table(own_found: list[list[Match]], own: LevelSet, references: LevelSet) -> pa.Table:
    flat = list(_flat(own_found))
    return pa.table(
        {
            "reference_id": own.clips["clip_id"].take(pa.array([row for row, _, _ in flat], pa.int64())),
            "nearest_id": references.clips["clip_id"].take(pa.array([match.reference for _, _, match in flat], pa.int64())),
            "score": pa.array([match.score for _, _, match in flat], pa.float64()),
        }
    )
