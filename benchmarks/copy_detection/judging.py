"""What is made of a system's predictions: scores by part, thresholds tried on other sources, errors to look at."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from auscult.metrics.copy_detection import (
    Interval,
    Prediction,
    Truth,
    breakdown,
    evaluate,
    recall_at_precision,
)

from .baselines import Answer, System
from .sets import Benchmark

DEEP = 10  # predictions that a system is asked for; recall@10 looks at all, the ranking at fewer
SUSPECTS = 10  # negatives of highest score, to be judged by ear before numbers are published

Scores = Mapping[str, Interval]


@dataclass(frozen=True)
class Transfer:
    """A threshold chosen on half of the sources and applied to the other half; the precision's interval is Wilson's."""

    chosen_on: str
    threshold: float
    precision: Interval
    recall: float


@dataclass(frozen=True)
class Judged:
    """Everything about one system.

    ``parts``: scores by how the queries are split (``all``, ``group``, ``kind``, ``strength``, ``unfitted``, ``apart``) and
    part. ``negatives``: by kind, the share at or above the threshold, and how many there are.
    """

    parts: dict[str, dict[str, Scores]]
    transfer: list[Transfer]
    negatives: dict[str, tuple[int, Interval]]
    suspects: list[dict[str, Any]]
    notes: tuple[str, ...]
    seconds: float
    peak_gb: float


def timed(system: System, benchmark: Benchmark) -> tuple[Answer, float, float]:
    """A system's answer, its seconds, and the process's peak memory in GB while it ran (NaN where Linux does not tell)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        resettable = True
    except OSError:
        resettable = False
    start = time.perf_counter()
    answer = system(benchmark)
    seconds = time.perf_counter() - start
    peak = float("nan")
    if resettable:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0]) / 2**20
    return answer, seconds, peak


def judge(
    benchmark: Benchmark, answer: Answer, *, top: int, resamples: int, fitted: Iterable[str], seconds: float, peak_gb: float
) -> Judged:
    """All tables of one system; `fitted` are the sources that something of the detector was fitted on."""
    truths, fitted = benchmark.truths, set(fitted)
    apart = [query.truth for query in benchmark.apart]
    asked = {truth.query_id for truth in truths}
    kept = first(answer.predictions, top)
    ranked = [p for p in kept if p.query_id in asked]
    strength = {query.truth.query_id: query.strength for query in benchmark.queries}
    overall = evaluate(truths, ranked, resamples=resamples)
    threshold = overall["threshold"].value
    found = _found([*truths, *apart], first(answer.predictions, DEEP))
    copies = [truth for truth in truths if truth.reference_id is not None]
    negatives = [truth for truth in truths if truth.reference_id is None]

    def split(by: Callable[[Truth], str]) -> dict[str, Scores]:
        deep = shares(copies, found, by=by, resamples=resamples)
        scores = breakdown(truths, ranked, by=by, resamples=resamples)
        return {part: {**values, "recall_at_10": deep[part]} for part, values in scores.items()}

    known = [truth for truth in truths if truth.source not in fitted]
    names = {truth.query_id for truth in known}
    parts: dict[str, dict[str, Scores]] = {
        "all": {"all": {**overall, "recall_at_10": shares(copies, found, by=lambda _: "all", resamples=resamples)["all"]}},
        "group": split(lambda truth: truth.group),
        "strength": split(lambda truth: strength[truth.query_id]),
        "kind": split(lambda truth: truth.kind),
        "unfitted": {"all": evaluate(known, [p for p in ranked if p.query_id in names], resamples=resamples)},
        "apart": {},
    }
    if apart:
        others = {truth.query_id for truth in [*apart, *negatives]}
        claims = [p for p in kept if p.query_id in others]
        scores = evaluate([*apart, *negatives], claims, threshold=threshold, resamples=resamples)
        deep = shares(apart, found, by=lambda truth: truth.kind, resamples=resamples)
        parts["apart"]["reverse"] = {**scores, "recall_at_10": deep["reverse"]}
    best = {p.query_id: p for p in reversed(kept)}  # the first of each query stays
    alarms = {truth.query_id for truth in negatives if truth.query_id in best and best[truth.query_id].score >= threshold}
    rates = shares(negatives, alarms, by=lambda truth: truth.kind, resamples=resamples)
    counts = {kind: sum(truth.kind == kind for truth in negatives) for kind in rates}
    return Judged(
        parts,
        transfer(truths, ranked),
        {kind: (counts[kind], rates[kind]) for kind in sorted(rates)},
        suspects(negatives, best),
        answer.notes,
        seconds,
        peak_gb,
    )


def first(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """The first `count` predictions of each query."""
    seen: dict[str, int] = {}
    out = []
    for prediction in predictions:
        seen[prediction.query_id] = seen.get(prediction.query_id, 0) + 1
        if seen[prediction.query_id] <= count:
            out.append(prediction)
    return out


def _found(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> set[str]:
    right = {truth.query_id: truth.reference_id for truth in truths}
    return {p.query_id for p in predictions if right[p.query_id] == p.reference_id}


def shares(
    truths: Sequence[Truth], hits: set[str], *, by: Callable[[Truth], str], resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """Share of the queries of each part that are in `hits`, with bootstrap intervals by source.

    >>> truths = [Truth("a", "r", "one", kind="k"), Truth("b", "r", "two", kind="k")]
    >>> shares(truths, {"a"}, by=lambda truth: truth.kind, resamples=0)["k"].value
    0.5
    """
    out = {}
    for part in dict.fromkeys(by(truth) for truth in truths):
        members = [truth for truth in truths if by(truth) == part]
        sources, source = np.unique([truth.source for truth in members], return_inverse=True)
        total = np.bincount(source)
        hit = np.bincount(source, [truth.query_id in hits for truth in members])
        draws = np.random.default_rng(seed).integers(len(sources), size=(resamples, len(sources)))
        rates = hit[draws].sum(axis=1) / total[draws].sum(axis=1)
        low, high = np.percentile(rates, [2.5, 97.5]) if resamples else (np.nan, np.nan)
        out[part] = Interval(float(hit.sum() / total.sum()), float(low), float(high))
    return out


def half(source: str) -> str:
    """``"A"`` or ``"B"``, by a hash of the source."""
    return "AB"[hashlib.sha256(f"half:{source}".encode()).digest()[0] % 2]


def transfer(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> list[Transfer]:
    """The threshold of 90 % precision on the queries of half of the sources, applied to the other half, both ways."""
    right = {truth.query_id: truth for truth in truths}
    side = {truth.query_id: half(truth.source) for truth in truths}
    halves = {}
    for name in "AB":
        claims = [p for p in predictions if side[p.query_id] == name]
        correct = np.array([right[p.query_id].reference_id == p.reference_id for p in claims], np.bool_)
        copies = sum(truth.reference_id is not None and side[truth.query_id] == name for truth in truths)
        halves[name] = (np.array([p.score for p in claims]), correct, copies)
    out = []
    for chosen, other in ("AB", "BA"):
        threshold = recall_at_precision(*halves[chosen]).threshold
        scores, correct, copies = halves[other]
        accepted, hits = int(np.sum(scores >= threshold)), int(np.sum(correct[scores >= threshold]))
        precision = Interval(float("nan"))
        if accepted:
            ends = binomtest(hits, accepted).proportion_ci(method="wilson")
            precision = Interval(hits / accepted, float(ends.low), float(ends.high))
        out.append(Transfer(chosen, threshold, precision, hits / copies if copies else float("nan")))
    return out


def suspects(negatives: Sequence[Truth], best: Mapping[str, Prediction]) -> list[dict[str, Any]]:
    """The negatives of highest score: each is an error of the system, or a copy that the benchmark overlooked."""
    claimed = [(best[truth.query_id], truth) for truth in negatives if truth.query_id in best]
    claimed.sort(key=lambda pair: (-pair[0].score, pair[0].query_id))
    return [
        {
            "query_id": truth.query_id,
            "source": truth.source,
            "kind": truth.kind,
            "reference": prediction.reference_id,
            "score": prediction.score,
            "query_s": [(round(s.query_start_s, 2), round(s.query_end_s, 2)) for s in prediction.spans],
            "reference_s": [(round(s.reference_start_s, 2), round(s.reference_end_s, 2)) for s in prediction.spans],
        }
        for prediction, truth in claimed[:SUSPECTS]
    ]
