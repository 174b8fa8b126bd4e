"""Which clips of a corpus are identical or similar: by digest, and by the audit paper's symmetric rule."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .calibration import MIN_SCORES, Threshold, fixed_threshold, gap_threshold
from .comparison import of_all
from .engine import HERE, Engine
from .folders import Progress, no_progress
from .identity import sample_clips
from .search import DoubleArray, FloatArray, IntArray, Pairs, TopK, self_join
from .search.approximate import check_method
from .search.recall import Recall, searched
from .similarity import BACKGROUND_K, BETA, CLOSE_K, background_bias, close_group
from .vectors import Vectors

KeepPolicy = Literal["longest", "highest_rate", "best_captioned", "first"]
LISTED = 20  # closest pairs, where the scores show no gap
CORPUS, OTHER, BOTH = "the corpus", "the other set", "both sets"  # what is searched
POLICIES = ("longest", "highest_rate", "best_captioned", "first")


@dataclass(frozen=True)
class DedupConfig:
    """Settings of a deduplication.

    Attributes
    ----------
    descriptor, duration_s, beta, background_k, background_sample, seed
        As in ``AuditConfig``.
    tau
        A number (the paper: 0.5025 for ``mel`` at 10.242 s), or ``"gap"``: read off the top-1 scores; if they show no gap,
        only identical clips count as duplicates, and the closest pairs are listed for review.
    keep
        Which clip of a cluster stays: ``longest``, ``highest_rate``, ``best_captioned`` (most distinct words) or ``first``.
    top1_sample
        With ``tau`` a number and a background set, as many clips at most are compared with all others for the histogram; the
        pairs above tau are found among all clips in either case.
    search
        As in ``AuditConfig``; of the nearest clips that tau is read off, while the pairs above tau are found exactly.
    coverage
        Share of a long recording's windows that must match before it counts as a duplicate of the other.
    """

    descriptor: str | None = None
    duration_s: float | None = None
    beta: float = BETA
    background_k: int = BACKGROUND_K
    background_sample: int = 1000
    tau: str | float = "gap"
    keep: KeepPolicy = "longest"
    coverage: float = 0.5
    seed: int = 0
    top1_sample: int = 20_000
    search: str = "exact"

    def __post_init__(self) -> None:
        check_method(self.search)
        if self.top1_sample < 1:
            raise ValueError(f"top1_sample should be at least 1, got {self.top1_sample}")
        if self.keep not in POLICIES:
            raise ValueError(f"keep should be one of {', '.join(POLICIES)}, got {self.keep!r}")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage should be above 0 and at most 1, got {self.coverage}")
        if self.background_k < 1 or self.background_sample < 1:
            raise ValueError(
                f"background_k and background_sample should be at least 1, got {self.background_k} and {self.background_sample}"
            )
        if self.tau != "gap":
            try:
                fixed_threshold(float(self.tau))
            except ValueError:
                raise ValueError(f"tau should be a number or 'gap', got {self.tau!r}") from None


@dataclass(frozen=True)
class ClipPair:
    """Two clips (rows of the clip table) that resemble each other.

    ``score`` is the smaller of the two normalized scores; ``coverage`` the share of the first's and of the second's windows
    that the other matches; ``kind`` is ``bit_identical``, ``sample_identical`` or ``similar``.
    """

    first: int
    second: int
    similarity: float
    score: float | None
    coverage: tuple[float, float]
    kind: str
    duplicate: bool


@dataclass(frozen=True)
class FoundPairs:
    """What `find_pairs` finds: ``threshold``, ``pairs``, the table ``top1`` (``clip_id, score``), and the share of all pairs of
    vectors that a bound excluded without computing them (``pruned``); ``recall`` of the nearest by what was searched ("the
    corpus", "the other set", "both sets"), as far as that was not searched exactly."""

    threshold: Threshold
    pairs: list[ClipPair]
    top1: pa.Table
    pruned: float
    recall: dict[str, Recall]


def find_pairs(
    joint: Vectors,
    n_corpus: int,
    background: Vectors | None,
    *,
    config: DedupConfig,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> FoundPairs:
    """The pairs of clips that are identical, or similar by the symmetric rule; and every clip's top-1 score.

    Rule (the audit paper's): ``s_hat(i, j) > tau`` and ``s_hat(j, i) > tau``, itself excluded by identity. Clips with identical
    samples are settled by their digests first, and one of each group stands for it in the search. Where the scores show
    no gap, the closest pairs are listed, but none but identical clips count as duplicates.
    """
    n = joint.clips.num_rows
    crossing = n_corpus < n
    groups = _identical_groups(joint.clips, n_corpus)
    pairs = _identical_pairs(groups, joint.clips, n_corpus)
    rows = np.array(sorted(members[0] for members in groups), np.int64)  # of the clip table; one speaks for its group
    speakers = joint.without(np.setdiff1d(np.arange(n), rows))
    side = (rows >= n_corpus).astype(np.int64)
    drawn = np.ones(len(rows), np.bool_)
    if config.tau != "gap" and background is not None and len(rows) > config.top1_sample:
        # nothing depends on the others' nearest: their pairs above tau are found by the join, which need not look at all pairs
        drawn[:] = False
        drawn[sample_clips(speakers.clips, config.top1_sample, config.seed)] = True
    bias, nearest, recalls = _bias_and_nearest(
        speakers, side if crossing else None, background, drawn, config, engine, progress
    )
    scores, best = _top1(speakers, nearest, bias)
    threshold = _dedup_threshold(config, scores[np.isfinite(scores)])
    if threshold.separated:
        found = self_join(
            speakers.vectors,
            threshold=threshold.tau,
            bias=bias,
            groups=speakers.clip,
            sides=side[speakers.clip] if crossing else None,
            engine=engine,
            name="join",
            progress=progress,
        )
    else:
        found = _closest(best, nearest, LISTED)
    members = {group[0]: group for group in groups}
    for (first, second), (similarity, score, coverage) in _by_clip(speakers, found, bias).items():
        duplicate = threshold.separated and max(coverage) >= config.coverage
        ends = (int(rows[first]), int(rows[second]))
        # what is similar to one clip of a group of identical ones is similar to all; across two sets each of them leaks
        everyone = itertools.product(members[ends[0]], members[ends[1]]) if crossing else [ends]
        pairs += [ClipPair(one, other, similarity, score, coverage, "similar", duplicate) for one, other in everyone]
    top1 = pa.table({"clip_id": speakers.clips["clip_id"], "score": pa.array(scores, from_pandas=True)})
    return FoundPairs(threshold, pairs, top1.filter(pa.array(drawn)), found.pruned, recalls)


def _identical_groups(clips: pa.Table, n_corpus: int) -> list[list[int]]:
    """Rows with identical samples, the two sets apart; clips unlike all others are groups of one."""
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for row, digest in enumerate(clips["sample_digest"].to_pylist()):
        groups[(digest, row >= n_corpus)].append(row)
    return list(groups.values())


def _identical_pairs(groups: list[list[int]], clips: pa.Table, n_corpus: int) -> list[ClipPair]:
    """Identical clips as pairs: each with the first of its group; across two sets, each with each of the other set's."""
    if n_corpus == clips.num_rows:
        return [identity(clips, members[0], other) for members in groups for other in members[1:]]
    digests = clips["sample_digest"]
    theirs = {digests[members[0]].as_py(): members for members in groups if members[0] >= n_corpus}
    return [
        identity(clips, mine, other)
        for members in groups
        if members[0] < n_corpus
        for mine, other in itertools.product(members, theirs.get(digests[members[0]].as_py(), []))
    ]


def identity(clips: pa.Table, first: int, second: int) -> ClipPair:
    """Two clips with identical samples; bit-identical if they are the same stretch of files with the same bytes."""
    same = all(clips[name][first].as_py() == clips[name][second].as_py() for name in ("sha256", "start_s", "duration_s"))
    return ClipPair(first, second, 1.0, None, (1.0, 1.0), "bit_identical" if same else "sample_identical", True)


def _bias_and_nearest(
    speakers: Vectors,
    side: IntArray | None,
    background: Vectors | None,
    drawn: npt.NDArray[np.bool_],
    config: DedupConfig,
    engine: Engine,
    progress: Progress,
) -> tuple[DoubleArray, TopK, dict[str, Recall]]:
    """Background bias of each vector, its nearest vector of another clip (of the other set, if there are two) if its clip is
    ``drawn``, and the recall of each set that is searched: an index of one may miss what that of another does not."""
    clips, n = speakers.clip, len(speakers)
    bias, nearest = np.zeros(n), TopK(np.full((n, 1), -1, np.int64), np.full((n, 1), np.nan))
    own = None if background is not None else _own_background(speakers.clips.num_rows, config)
    sample = background if own is None else speakers.subset(own)
    halves = (speakers,) if side is None else speakers.split(int(np.count_nonzero(side == 0)))
    start, recalls = 0, dict[str, Recall]()
    for half in halves:
        # search each set in the other, rather than exclude half of the references for every query
        other, origin = (half, 0) if side is None else (halves[1 - (start > 0)], 0 if start else len(half))
        all_of_them, those_across = (CORPUS, CORPUS) if side is None else (BOTH, CORPUS if start else OTHER)
        for panel, vectors in half.panels(engine):
            rows = slice(start + panel.start, start + panel.stop)
            asked = np.flatnonzero(drawn[clips[rows]])
            show = partial(of_all, progress, rows, n, "")

            search = partial(_search, config.search, vectors[asked], recalls, engine=engine, progress=show)
            if side is None or own is not None:
                k = 1 if own is None else min(CLOSE_K, max(n - 1, 1))
                mine = clips[rows][asked]
                near = search(speakers, all_of_them, k=k, exclude=(mine, clips), name=f"near-{rows.start}")
            across = near if side is None else search(other, those_across, k=1, name=f"across-{rows.start}")
            if sample is not None:
                exclude = None
                if own is not None:
                    exclude = (np.column_stack([clips[rows], _suspects(near, clips)]), own[sample.clip])
                bias[rows] = background_bias(
                    vectors, sample.vectors, k=config.background_k, beta=config.beta, exclude=exclude, engine=engine.local
                )
            nearest.index[rows.start + asked] = np.where(across.index[:, :1] >= 0, across.index[:, :1] + origin, -1)
            nearest.similarity[rows.start + asked] = across.similarity[:, :1]
        start += len(half)
    return bias, nearest, recalls


def _search(
    method: str, queries: FloatArray, recalls: dict[str, Recall], references: Vectors, called: str, **options: Any
) -> TopK:
    """The nearest of the references, whose recall is measured in the first search of them, and noted."""
    found, recall = searched(method, queries, references.vectors, measure=called not in recalls, **options)
    if recall is not None:
        recalls[called] = recall
    return found


def _own_background(n_clips: int, config: DedupConfig) -> IntArray | None:
    """The clips that take the place of a background set; None if there are too few, off which no threshold is read either."""
    if n_clips < MIN_SCORES:
        return None
    chosen = np.random.default_rng(config.seed).choice(n_clips, min(n_clips, config.background_sample), replace=False)
    return np.sort(chosen).astype(np.int64)


def _suspects(near: TopK, clips: IntArray) -> IntArray:
    """Clips that each vector may be a copy of: as the clip itself, they do not count as its background."""
    copies = np.arange(near.index.shape[1]) < close_group(near.similarity)[:, None]
    return np.where(copies & (near.index >= 0), clips[near.index], -1)


def _top1(speakers: Vectors, nearest: TopK, bias: DoubleArray) -> tuple[DoubleArray, IntArray]:
    """Score of each clip with its nearest other clip (NaN: none), and the window that it is reached with (-1: none)."""
    other = nearest.index[:, 0]
    # the symmetric rule subtracts the larger bias of the two
    score = np.where(other >= 0, nearest.similarity[:, 0] - np.maximum(bias, bias[other]), np.nan)
    scores = np.full(speakers.clips.num_rows, np.nan)
    np.fmax.at(scores, speakers.clip, score)
    best = np.full(speakers.clips.num_rows, -1)
    reached = np.flatnonzero(score == scores[speakers.clip])
    best[speakers.clip[reached]] = reached
    return scores, best[np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")]


def _closest(best: IntArray, nearest: TopK, count: int) -> Pairs:
    """The closest pairs, each clip with its nearest: what is listed where nothing can be decided."""
    rows = best[best >= 0][: 2 * count]  # a pair is often the nearest of both its ends
    ends = np.sort(np.column_stack([rows, nearest.index[rows, 0]]), axis=1)
    ends, first = np.unique(ends, axis=0, return_index=True)
    keep = np.sort(np.argsort(first)[:count])
    return Pairs(ends[keep, 0], ends[keep, 1], nearest.similarity[rows[first[keep]], 0])


def _dedup_threshold(config: DedupConfig, top: DoubleArray) -> Threshold:
    if config.tau != "gap":
        return fixed_threshold(float(config.tau))
    if len(top) < MIN_SCORES:
        why = f"{len(top)} different clips are too few for a histogram ({MIN_SCORES} are needed)."
        return Threshold(float(top.max(initial=0.0)), "gap", False, why)
    return gap_threshold(np.zeros(0), top)


def _by_clip(
    vectors: Vectors, found: Pairs, bias: DoubleArray
) -> dict[tuple[int, int], tuple[float, float, tuple[float, float]]]:
    """From pairs of windows to pairs of clips: best similarity, its score, and how much of each clip is matched."""
    windows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (left, right) in enumerate(zip(vectors.clip[found.first], vectors.clip[found.second], strict=True)):
        windows[(int(left), int(right))].append(number)
    n_windows = np.bincount(vectors.clip, minlength=vectors.clips.num_rows)
    score = found.similarity - np.maximum(bias[found.first], bias[found.second])
    result = {}
    for (left, right), numbers in windows.items():
        best = max(numbers, key=lambda number: (score[number], -number))
        coverage = (
            len(set(found.first[numbers].tolist())) / int(n_windows[left]),
            len(set(found.second[numbers].tolist())) / int(n_windows[right]),
        )
        result[(left, right)] = (float(found.similarity[best]), float(score[best]), coverage)
    return result
