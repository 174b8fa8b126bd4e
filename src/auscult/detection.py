"""The two-stage detector over whole stores: what an audit with the ``contrast`` descriptor does.

Data flow: stores -> levels of every clip -> candidates of each query -> scores against background -> spans of the best ->
p-values against null clips -> the same tables that any comparison gives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .alignment.candidates import candidates
from .alignment.scoring import MIN_BACKGROUND, Clips, prepare_clips, score
from .alignment.spans import Alignment, locate
from .audit_config import AuditConfig, choose_threshold, level
from .calibration import conformal_p_values, null_from_training
from .comparison import GENERATED, Comparison
from .descriptors.contrast import Frames, Levels, fingerprint
from .detection_tables import Match, matches_table, queries_table, training_table
from .engine import HERE, Engine
from .folders import Progress, no_progress
from .identity import kept_apart, same_audio, same_place_warning, sample_clips, shared_audio
from .levels import LevelSet
from .null_scores import length_warning, null_rows, null_table, without_duplicates
from .search import DoubleArray, IntArray
from .search.checkpoint import Checkpoint

HISTOGRAM_CLIPS = 250  # training clips scored against the others where null clips are given: enough to draw a histogram
BACKGROUND_CLIPS = 64  # of the background set that each query is compared with
CLOSE = 24  # candidates whose best stretch is looked for; the others can only score lower
TYPICAL_BYTES = 20_480  # levels of a clip of 10 s
NONE = np.zeros(0, np.int64)


def detect(
    generated: LevelSet,
    references: LevelSet,
    background: LevelSet | None = None,
    null: LevelSet | None = None,
    *,
    config: AuditConfig,
    spec: str,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare sets of clips by the two-stage detector.

    Parameters
    ----------
    generated, references
        Queries, and what they may replay.
    background
        Unrelated clips that scores are standardized by; None: a sample of the references, outliers left out.
    null
        Clips known not to be in the training set, for p-values; None: the references' own leave-one-out scores, the
        duplicates among them left out, which is weaker.
    config, engine, progress
        Settings, where the work is done, and a callable for progress.

    Raises
    ------
    ValueError
        Fewer than 8 background clips in which anything but a steady tone is heard.
    """
    warnings = same_place_warning(generated.clips, references.clips)
    own_background = background is None
    if background is None:
        warnings.append(
            "No background set was given; training clips took its place, which is weaker. "
            "Give --background with unrelated sound."
        )
    elif shared := shared_audio(background.clips, references.clips):
        warnings.append(f"{shared} background clips are also training clips; that hides copies of them.")
    prints = _background_prints(references if background is None else background, config.seed, own=own_background)
    detector = _Detector(references, prepare_clips(prints), own_background, config, engine)

    found = detector.matches(generated, config.k, progress, GENERATED)
    # with null clips of their own, the training clips' scores only draw a histogram
    wanted = config.null_sample if null is None else min(config.null_sample, HISTOGRAM_CLIPS)
    own = references.subset(sample_clips(references.clips, wanted, config.seed))
    own_found = detector.matches(own, 1, progress, "training")
    own_top = _top(own_found)
    if null is None:
        null_found, null_set = own_found, own
        null_top = null_from_training(own_top)
        duplicates = np.count_nonzero(np.isfinite(own_top)) - len(null_top)
        warnings.append(
            f"No null clips were given; p-values come from {len(null_top):,} training clips scored against the others "
            f"({duplicates:,} duplicates left out), which is weaker. Give --null with clips that are known "
            "not to be in the training set."
        )
    else:
        null = null.subset(null_rows(null.clips, references.clips, warnings, config.group))
        null_found, null_set = detector.matches(null, 1, progress, "null"), null
        null_top = without_duplicates(_top(null_found), config.group, warnings)
    top = _top(found)
    warnings += length_warning(generated.clips, null_set.clips)
    threshold = choose_threshold(config, "fdr", top, own_top, null_top)
    if not threshold.separated:
        warnings.append(threshold.explanation)
    located = detector.locate(generated, found, progress)
    return Comparison(
        matches_table(found, located, generated, references, null_top, threshold.tau, spec),
        queries_table(found, generated, references, conformal_p_values(top, null_top), threshold.tau),
        training_table(own_found, own, references),
        null_table(training_table(null_found, null_set, references), null_top),
        threshold,
        tuple(warnings),
        {"null_clips": len(null_top), "null": "given" if null is not None else "leave-one-out", "fdr": level(config)},
    )


def check_background(source: LevelSet, *, seed: int = 0, own: bool) -> None:
    """See that clips can serve as background, before hours of work whose audit would fail; see :func:`detect`.

    Parameters
    ----------
    own
        Whether the clips are the references themselves.

    Raises
    ------
    ValueError
        Too few in which anything but a steady tone is heard.
    """
    _background_prints(source, seed, own=own)


def _background_prints(source: LevelSet, seed: int, *, own: bool) -> list[Frames]:
    """Fingerprints of `BACKGROUND_CLIPS` clips in which something is heard.

    Silence and steady tones agree with nothing: as background they would make every clip look surprisingly close.
    """
    prints: list[Frames] = []
    order = sample_clips(source.clips, len(source), seed)
    for start in range(0, len(order), 2 * BACKGROUND_CLIPS):  # from a store, a few reads for many clips
        heard = map(fingerprint, source.read(order[start : start + 2 * BACKGROUND_CLIPS]))
        prints += [print_of_clip for print_of_clip in heard if print_of_clip.any()]
        if len(prints) >= BACKGROUND_CLIPS:
            break
    prints = prints[:BACKGROUND_CLIPS]
    least = MIN_BACKGROUND + own  # a training clip is not its own background
    if len(prints) < least:
        what = "training clips, which take the place of a background set," if own else "background clips"
        raise ValueError(
            f"expected at least {least} {what} with more than silence and steady tones in them, got {len(prints)}; "
            "give --background with unrelated sound"
        )
    return prints


@dataclass(frozen=True)
class _Case:
    """A query and its candidates: rows of the references, their levels, which of them have the very samples of the query, and
    which are the query itself."""

    query: Levels
    rows: IntArray
    levels: list[Levels]
    twins: npt.NDArray[np.bool_]
    itself: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Scorer:
    """Scores one query's candidates; what a cluster sends to its workers."""

    background: Clips
    own_background: bool
    k: int
    cache_bytes: int
    prints: dict[int, Frames] = field(default_factory=dict)  # of candidates that earlier queries had, too
    prepared: dict[bytes, Clips] = field(default_factory=dict)  # the last list of candidates: in a small audit all have one

    def __call__(self, case: _Case) -> list[Match]:
        scores = score(case.query, self._clips(case), self.background, close=CLOSE, own_background=self.own_background)
        # identical samples come first: of a steady tone the score says nothing
        order = np.lexsort((case.rows, -scores.score, ~case.twins))
        picked = [at for at in order.tolist() if not case.itself[at] and np.isfinite(scores.score[at])]
        return [
            Match(
                int(case.rows[at]),
                float(scores.score[at]),
                (float(scores.halves[at, 0]), float(scores.halves[at, 1])),
                float(scores.parts[at, 0]),
                scores.usual,
                int(scores.hypothesis[at]),
                int(scores.query_start[at]),
                int(scores.reference_start[at]),
            )
            for at in picked[: self.k]
        ]

    def _clips(self, case: _Case) -> Clips:
        key = case.rows.tobytes()
        found = self.prepared.get(key)
        if found is None:
            pairs = zip(case.rows.tolist(), case.levels, strict=True)
            found = prepare_clips([self._print(row, levels) for row, levels in pairs])
            self.prepared.clear()
            self.prepared[key] = found
        return found

    def _print(self, row: int, levels: Levels) -> Frames:
        found = self.prints.get(row)
        if found is None:
            found = fingerprint(levels)
            if (len(self.prints) + 1) * found.nbytes > self.cache_bytes:  # about: clips of a corpus are of like length
                self.prints.clear()
            self.prints[row] = found
        return found


class _Detector:
    """The references and the background, prepared once for several sets of queries."""

    def __init__(
        self, references: LevelSet, background: Clips, own_background: bool, config: AuditConfig, engine: Engine
    ) -> None:
        self.references, self.background, self.own_background = references, background, own_background
        self.config, self.engine = config, engine
        # as many queries at a time as half of the memory holds candidates of, should all of them lie on disk
        self.panel = max(1, engine.memory_bytes // (2 * config.candidates * TYPICAL_BYTES))

    def matches(self, queries: LevelSet, k: int, progress: Progress, role: str) -> list[list[Match]]:
        """The best ``k`` references of each query, best first; see :func:`kept_apart` for those that it is not matched with."""
        mine, theirs = kept_apart(queries.clips, self.references.clips, None if role == GENERATED else self.config.group)
        my_audio, their_audio = same_audio(queries.clips, self.references.clips)
        twins = _rows_of(their_audio)
        scorer = _Scorer(self.background, self.own_background, k, self.engine.memory_bytes // 8)
        checkpoint = Checkpoint(self.engine.scratch_file(f"{role}-scored"), range(1, len(queries) + 1))
        done, kept = checkpoint.restore(_as_arrays([]))
        found = _from_arrays(kept, len(queries))
        for panel, levels in queries.panels(self.panel, done):
            listed = self._candidates(levels, f"{role}-{panel[0]}", progress, f"{role} clips: candidates")
            lists = [
                np.concatenate([rows, np.setdiff1d(twins.get(int(my_audio[query]), NONE)[: k + 1], rows)])
                for query, rows in zip(panel.tolist(), listed, strict=True)
            ]
            wanted = np.unique(np.concatenate(lists))
            near = dict(zip(wanted.tolist(), self.references.read(wanted), strict=True))
            cases = (
                _Case(
                    query_levels,
                    rows,
                    [near[row] for row in rows.tolist()],
                    (their_audio[rows] == my_audio[query]) & (their_audio[rows] >= 0),
                    theirs[rows] == mine[query],
                )
                for query, query_levels, rows in zip(panel.tolist(), levels, lists, strict=True)
            )
            results = self.engine.map(scorer, cases, threads=self.engine.workers)
            for query, matches in zip(panel.tolist(), results, strict=True):
                found[query] = matches
                progress(query + 1, len(queries), f"{role} clips scored")
            checkpoint.keep(int(panel[-1]) + 1, _as_arrays(found))
        return found

    def _candidates(self, queries: list[Levels], name: str, progress: Progress, what: str) -> IntArray:
        """(queries, candidates) rows of the references that are looked at closely."""
        n = len(self.references)
        if n <= self.config.candidates:
            return np.broadcast_to(np.arange(n), (len(queries), n))
        searched = candidates(
            queries,
            self.references.levels,
            k=self.config.candidates,
            engine=self.engine,
            name=name,
            progress=lambda done: progress(done, n, what),
        )
        return searched.index.astype(np.int64)

    def locate(self, queries: LevelSet, found: list[list[Match]], progress: Progress) -> list[list[Alignment]]:
        """Spans of every listed match."""
        located: list[list[Alignment]] = [[] for _ in found]
        total, done = sum(map(len, found)), 0
        for panel, levels in queries.panels(self.panel):
            jobs = [(at, match) for at, row in enumerate(panel.tolist()) for match in found[row]]
            references = self.references.read(np.array([match.reference for _, match in jobs], np.int64))
            pairs = ((levels[at], near, match) for (at, match), near in zip(jobs, references, strict=True))
            results = self.engine.map(_located, pairs, threads=self.engine.workers)
            for (at, _), alignment in zip(jobs, results, strict=True):
                located[panel[at]].append(alignment)
                done += 1
                progress(done, total, "matches located")
        return located


def _as_arrays(found: list[list[Match]]) -> dict[str, npt.NDArray[Any]]:
    """All matches as arrays, for a checkpoint."""
    rows = [(query, *dataclasses.astuple(match)) for query, matches in enumerate(found) for match in matches]
    flat = [(q, ref, score, *halves, *rest) for q, ref, score, halves, *rest in rows]
    return {"matches": np.array(flat, np.float64).reshape(len(flat), 10)}


def _from_arrays(kept: dict[str, npt.NDArray[Any]], n: int) -> list[list[Match]]:
    """The inverse of `_as_arrays` for ``n`` queries."""
    found: list[list[Match]] = [[] for _ in range(n)]
    for query, reference, value, whole_half, stretch_half, whole, usual, *place in kept["matches"].tolist():
        match = Match(int(reference), value, (whole_half, stretch_half), whole, usual, *map(int, place))
        found[int(query)].append(match)
    return found


def _located(job: tuple[Levels, Levels, Match]) -> Alignment:
    query, reference, match = job
    return locate(
        query,
        reference,
        hypothesis=match.hypothesis,
        query_start=match.query_start,
        reference_start=match.reference_start,
    )


def _rows_of(numbers: IntArray) -> dict[int, IntArray]:
    """The rows of each number but -1, in order."""
    order = np.argsort(numbers, kind="stable")
    values, first = np.unique(numbers[order], return_index=True)
    return {int(v): rows for v, rows in zip(values, np.split(order, first[1:]), strict=True) if v >= 0}


def _top(found: list[list[Match]]) -> DoubleArray:
    """(n,) largest score of each query; NaN without a match."""
    return np.array([max((match.score for match in matches), default=np.nan) for matches in found])
