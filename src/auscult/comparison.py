"""Comparing sets of vectors: normalized top matches, a threshold, and the tables that an audit consists of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .audit_config import AuditConfig, choose_threshold, level
from .calibration import (
    Threshold,
    conformal_p_values,
    null_from_training,
)
from .engine import HERE, Engine
from .folders import Progress, no_progress
from .identity import (
    kept_apart,
    same_audio,
    same_place_warning,
    sample_clips,
    shared_audio,
)
from .null_scores import length_warning, null_rows, null_table, without_duplicates
from .search import DoubleArray, FloatArray, IntArray, TopK
from .search.approximate import FEWEST_ROWS
from .search.recall import Recall, searched
from .similarity import CLOSE_K, background_bias, close_group
from .vectors import Vectors

GENERATED = "generated"  # the role of the clips that are audited
EXACT_AFTER_ALL = f"The search was exact: with fewer than {FEWEST_ROWS:,} vectors no approximate index is built."


@dataclass(frozen=True)
class Comparison:
    """What comparing three sets of vectors gives: tables and threshold, nothing on disk."""

    matches: pa.Table
    queries: pa.Table
    training: pa.Table
    null: pa.Table
    threshold: Threshold
    warnings: tuple[str, ...]
    calibration: dict[str, Any]
    recall: Recall | None = None


def compare(
    generated: Vectors,
    references: Vectors,
    background: Vectors | None = None,
    null: Vectors | None = None,
    *,
    config: AuditConfig,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare sets of vectors: normalized top matches, the training set's own top-1 scores, tau and p-values.

    A clip's score with another is the largest over their windows. A generated clip is never matched with itself (the
    same stretch of the same file), should the sets overlap.
    """
    warnings = same_place_warning(generated.clips, references.clips)
    own_background = background is None
    if background is None:
        rows = sample_clips(references.clips, config.background_sample, config.seed)
        background = references.subset(rows)
        warnings.append(
            f"No background set was given; {len(rows)} training clips took its place, which is weaker: a training clip with "
            "many near-copies looks ordinary. Give --background with unrelated sound."
        )
    elif shared := shared_audio(background.clips, references.clips):
        warnings.append(f"{shared} background clips are also training clips; that hides copies of them.")

    normalized = _Normalizer(references, background, config, engine, own_background=own_background)
    best = normalized.best_matches(generated, config.k, GENERATED, progress)
    sample = references.subset(sample_clips(references.clips, config.training_sample, config.seed))
    own = normalized.best_matches(sample, 1, "training", progress)
    own_top = own.top_score(sample.clips.num_rows)
    top = best.top_score(generated.clips.num_rows)
    if null is None:
        null_best, null_clips = own, sample
        null_top = null_from_training(own_top)
    else:
        null = null.subset(null_rows(null.clips, references.clips, warnings, config.group))
        null_best, null_clips = normalized.best_matches(null, 1, "null", progress), null
        null_top = without_duplicates(null_best.top_score(null.clips.num_rows), config.group, warnings)
    warnings += length_warning(generated.clips, null_clips.clips)
    threshold = choose_threshold(config, "gap", top, own_top, null_top)
    if not threshold.separated:
        warnings.append(threshold.explanation)
    if normalized.recall is not None:
        warnings.append(normalized.recall.sentence())
    elif config.search != "exact":
        warnings.append(EXACT_AFTER_ALL)
    return Comparison(
        _matches_table(best, generated, references, null_top, threshold.tau),
        _queries_table(best, generated, references, null_top, threshold.tau),
        _training_table(own, sample, references),
        null_table(_training_table(null_best, null_clips, references), null_top),
        threshold,
        tuple(warnings),
        {
            "null_clips": int(np.isfinite(null_top).sum()),
            "null": "given" if null is not None else "leave-one-out",
            "fdr": level(config),
        },
        normalized.recall,
    )


@dataclass(frozen=True)
class _Best:
    """Matches at the level of clips, ordered by query, then score. All arrays (p,); ``query`` and ``reference`` are rows of
    the clip tables, ``*_start_s`` where the best windows start."""

    query: IntArray
    reference: IntArray
    rank: IntArray
    similarity: DoubleArray
    bias: DoubleArray
    query_start_s: DoubleArray
    reference_start_s: DoubleArray

    @property
    def score(self) -> DoubleArray:
        return self.similarity - self.bias

    def top_score(self, n_queries: int) -> DoubleArray:
        """(n,) score of each query's best match; NaN without one."""
        top = np.full(n_queries, np.nan)
        first = self.rank == 1
        top[self.query[first]] = self.score[first]
        return top


class _Normalizer:
    """The references and the background, prepared once for several sets of queries."""

    def __init__(
        self, references: Vectors, background: Vectors, config: AuditConfig, engine: Engine, *, own_background: bool
    ) -> None:
        self.references, self.background, self.config, self.engine = references, background, config, engine
        self.own_background = own_background
        self.recall: Recall | None = None
        by_id = np.empty(references.clips.num_rows, np.int64)
        by_id[np.argsort(references.clip_ids, kind="stable")] = np.arange(references.clips.num_rows)
        order = np.lexsort((references.start_s, by_id[references.clip]))
        self.rank = np.empty(len(order), np.int64)
        self.rank[order] = np.arange(len(order))

    def best_matches(self, queries: Vectors, k: int, role: str, progress: Progress) -> _Best:
        """The ``k`` best references of each query, a panel of queries at a time; ``role`` says which queries these are."""
        group = None if role == GENERATED else self.config.group
        mine, theirs = kept_apart(queries.clips, self.references.clips, group)
        audio = same_audio(queries.clips, self.references.clips, self.background.clips)
        k = min(k, self.references.clips.num_rows)
        index, similarity = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.nan)
        bias = np.zeros(len(queries))
        for rows, vectors in queries.panels(self.engine):
            clip = queries.clip[rows]
            found, recall = searched(
                self.config.search,
                vectors,
                self.references.vectors,
                measure=self.recall is None,
                k=k,
                exclude=(mine[clip], theirs[self.references.clip]),
                distinct=self.references.clip,
                rank=self.rank,
                engine=self.engine,
                name=f"{role}-{rows.start}",
                progress=partial(of_all, progress, rows, len(queries), f"{role} clips: "),
            )
            self.recall = self.recall or recall
            # neither the query itself nor what it may be a copy of counts as background
            suspects = self._suspects(vectors, found, audio[1], f"{role}-near-{rows.start}")
            bias[rows] = background_bias(
                vectors,
                self.background.vectors,
                k=self.config.background_k,
                beta=self.config.beta,
                exclude=(np.column_stack([audio[0][clip], suspects]), audio[2][self.background.clip]),
                engine=self.engine.local,
            )
            index[rows], similarity[rows] = found.index, found.similarity
        return self._by_clip(queries, index, similarity, bias, k)

    def _suspects(self, queries: FloatArray, found: TopK, audio: IntArray, name: str) -> IntArray:
        """Audio of the references that each query may be a copy of: its best match, and where the background is drawn from
        the references, every reference that is as close as copies are."""
        nearest = found.index[:, :1]
        if self.own_background:
            references = self.references.vectors
            k = min(CLOSE_K, len(self.references))
            near, _ = searched(self.config.search, queries, references, measure=False, k=k, engine=self.engine, name=name)
            within = np.arange(near.index.shape[1]) < close_group(near.similarity)[:, None]
            nearest = np.column_stack([nearest, np.where(within, near.index, -1)])
        return np.where(nearest >= 0, audio[self.references.clip[nearest]], -1)

    def _by_clip(self, queries: Vectors, found: IntArray, similarity: DoubleArray, bias: DoubleArray, k: int) -> _Best:
        """From windows to clips: the best pair of windows speaks for a pair of clips."""
        row, column = np.nonzero(found >= 0)
        window = found[row, column]
        query, reference = queries.clip[row], self.references.clip[window]
        score = similarity[row, column] - bias[row]
        order = np.lexsort((self.rank[window], -score, query))
        pair = query[order] * (int(self.references.clips.num_rows) + 1) + reference[order]
        order = order[np.sort(np.unique(pair, return_index=True)[1])]  # the first of each pair of clips is its best
        rank = _rank_in_group(query[order])
        order, rank = order[rank <= k], rank[rank <= k]
        return _Best(
            query[order],
            reference[order],
            rank,
            similarity[row, column][order],
            bias[row][order],
            queries.start_s[row][order],
            self.references.start_s[window][order],
        )


def of_all(progress: Progress, rows: slice, n: int, prefix: str, done: int, total: int | None, what: str) -> None:
    """Progress of one panel of queries as that of all ``n``."""
    whole = (total or 0) // (rows.stop - rows.start)  # references
    progress(rows.start * whole + done, n * whole, prefix + what)


def _rank_in_group(groups: IntArray) -> IntArray:
    """1, 2, 3 ... within each run of equal values."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, lengths) + 1


def with_identical(comparison: Comparison, generated: pa.Table, references: pa.Table) -> Comparison:
    """Flag listed pairs whose samples are identical, whatever their score: those are copies, even of steady sound."""
    sides = [dict(zip(t["clip_id"].to_pylist(), t["sample_digest"].to_pylist(), strict=True)) for t in (generated, references)]
    matches = comparison.matches.to_pylist()
    identical = [sides[0][row["query_id"]] == sides[1][row["reference_id"]] for row in matches]
    copied = {row["query_id"] for row, same in zip(matches, identical, strict=True) if same}
    if not copied:
        return comparison
    flags = {
        "matches": [row["flagged"] or same for row, same in zip(matches, identical, strict=True)],
        "queries": [row["flagged"] or row["query_id"] in copied for row in comparison.queries.to_pylist()],
    }
    tables = {}
    for name, values in flags.items():
        table = getattr(comparison, name)
        tables[name] = table.set_column(table.column_names.index("flagged"), "flagged", pa.array(values, pa.bool_()))
    note = f"{len(copied)} generated clips have exactly the samples of a training clip; they are flagged whatever their score."
    return replace(comparison, **tables, warnings=(*comparison.warnings, note))


def _matches_table(best: _Best, generated: Vectors, references: Vectors, null_top: DoubleArray, tau: float) -> pa.Table:
    query, reference = generated.clips.take(best.query), references.clips.take(best.reference)
    ends = [
        np.minimum(start + window, np.maximum(side["duration_s"].to_numpy(), start))
        for start, window, side in (
            (best.query_start_s, generated.window_s, query),
            (best.reference_start_s, references.window_s, reference),
        )
    ]
    return pa.table(
        {
            "query_id": query["clip_id"],
            "query_path": query["path"],
            "reference_id": reference["clip_id"],
            "reference_path": reference["path"],
            "rank": pa.array(best.rank, pa.int32()),
            "similarity": best.similarity,
            "bias": best.bias,
            "score": best.score,
            "p_value": conformal_p_values(best.score, null_top),
            "flagged": best.score >= tau,
            "query_start_s": best.query_start_s,
            "query_end_s": ends[0],
            "reference_start_s": best.reference_start_s,
            "reference_end_s": ends[1],
            "lag_s": best.query_start_s - best.reference_start_s,
            "descriptor": pa.array([str(references.spec)] * len(best.rank), pa.string()),
            "query_caption": query["caption"],
            "reference_caption": reference["caption"],
            "query_offset_s": query["start_s"],
            "reference_offset_s": reference["start_s"],
        }
    )


def _queries_table(best: _Best, generated: Vectors, references: Vectors, null_top: DoubleArray, tau: float) -> pa.Table:
    first = np.flatnonzero(best.rank == 1)
    place = np.full(generated.clips.num_rows, -1, np.int64)
    place[best.query[first]] = first
    have = place >= 0

    def column(values: npt.NDArray[Any]) -> pa.Array:
        return pa.array(np.where(have, values[place] if len(values) else 0.0, np.nan), from_pandas=True)

    ids = references.clip_ids
    nearest = [str(ids[best.reference[row]]) if row >= 0 else None for row in place]
    return pa.table(
        {
            "query_id": generated.clips["clip_id"],
            "path": generated.clips["path"],
            "caption": generated.clips["caption"],
            "duration_s": generated.clips["duration_s"],
            "flags": generated.clips["flags"],
            "n_windows": generated.clips["n_windows"],
            "reference_id": pa.array(nearest, pa.string()),
            "similarity": column(best.similarity),
            "bias": column(best.bias),
            "score": column(best.score),
            "p_value": column(conformal_p_values(best.score, null_top)),
            "flagged": pa.array(have & (np.where(have, best.score[place] if len(first) else 0.0, -np.inf) >= tau)),
        }
    )


def _training_table(own: _Best, sample: Vectors, references: Vectors) -> pa.Table:
    return pa.table(
        {
            "reference_id": sample.clips["clip_id"].take(pa.array(own.query)),
            "nearest_id": references.clips["clip_id"].take(pa.array(own.reference)),
            "score": own.score,
        }
    )
