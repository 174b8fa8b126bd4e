"""The results as tables: Markdown for the page, rows for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from auscult.metrics.copy_detection import Interval

from .judging import Judged, Scores
from .sets import Benchmark

OVERALL = (
    "micro_ap",
    "recall_at_precision",
    "threshold",
    "false_positive_rate",
    "recall_at_1pct_false_positives",
    "top1",
    "recall_at_10",
)
PLACES = ("located", "onset_error_s", "lag_error_s", "temporal_iou")
BY_PART = ("micro_ap", "recall_at_threshold", "top1", "recall_at_10", "onset_error_s", "lag_error_s", "temporal_iou")
APART = ("recall_at_threshold", "top1", "recall_at_10")
HEADINGS = {
    "micro_ap": "micro-AP",
    "recall_at_precision": "recall at 90 % precision",
    "recall_at_threshold": "recall at the threshold",
    "recall_at_1pct_false_positives": "recall at 1 % false positives",
    "recall_at_10": "recall@10",
    "threshold": "threshold",
    "top1": "top-1",
    "false_positive_rate": "false-positive rate",
    "located": "located",
    "onset_error_s": "onset error (s)",
    "lag_error_s": "lag error (s)",
    "temporal_iou": "temporal IoU",
}

FINE = 5  # digits of thresholds and scores: the mel descriptor's cosines of unrelated clips differ in the fourth


def cell(interval: Interval, digits: int = 3) -> str:
    """A value with its interval, as far as they exist.

    >>> cell(Interval(0.5, 0.4, 0.6)), cell(Interval(float("nan"))), cell(Interval(float("inf"), 2.0, float("inf")))
    ('0.500 [0.400, 0.600]', '-', 'none [2.000, none]')
    """
    if math.isnan(interval.value):
        return "-"
    value, low, high = (_number(x, digits) for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "-"
    return "none" if math.isinf(value) else f"{value:.{digits}f}"


def markdown(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Lines of a Markdown table of rows with equal keys; none for no rows."""
    if not rows:
        return []
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    return lines + [f"| {' | '.join(str(value) for value in row.values())} |" for row in rows]


def table(heading: str, rows: Mapping[str, Scores], columns: Sequence[str]) -> list[str]:
    """A row per name; columns that hold nothing are left out."""
    used = [c for c in columns if any(c in row and not math.isnan(row[c].value) for row in rows.values())]
    return markdown(
        [
            {heading: name} | {HEADINGS[c]: cell(row[c], FINE if c == "threshold" else 3) for c in used}
            for name, row in rows.items()
        ]
    )


def costs(judged: Mapping[str, Judged]) -> list[str]:
    """Seconds and memory of each system."""
    return markdown(
        [
            {"system": name, "seconds": f"{one.seconds:.0f}", "peak memory (GB)": _number(one.peak_gb)}
            for name, one in judged.items()
        ]
    )


def transfers(judged: Mapping[str, Judged]) -> list[str]:
    """What thresholds of half of the sources do on the other half."""
    return markdown(
        [
            {
                "system": name,
                "chosen on": f"half {row.chosen_on}",
                "threshold": _number(row.threshold, FINE),
                "precision on the other": cell(row.precision),
                "recall on the other": _number(row.recall),
            }
            for name, one in judged.items()
            for row in one.transfer
        ]
    )


def negatives(judged: Mapping[str, Judged]) -> list[str]:
    """False-positive rates by kind of negative, a column per system."""
    kinds = next(iter(judged.values())).negatives
    return markdown(
        [
            {"kind": kind, "number": count} | {name: cell(one.negatives[kind][1]) for name, one in judged.items()}
            for kind, (count, _) in kinds.items()
        ]
    )


def suspect_rows(one: Judged) -> list[str]:
    """The negatives of highest score of a system; of spans the first three."""
    placed = any(row["query_s"] for row in one.suspects)
    return markdown(
        [
            {name: row[name] for name in ("query_id", "source", "kind", "reference")}
            | {"score": _number(row["score"], FINE)}
            | (
                {"in the query (s)": _spans(row["query_s"]), "in the reference (s)": _spans(row["reference_s"])}
                if placed
                else {}
            )
            for row in one.suspects
        ]
    )


def _spans(spans: Sequence[tuple[float, float]]) -> str:
    listed = ", ".join(f"{start:.2f}-{end:.2f}" for start, end in spans[:3])
    return listed + (", ..." if len(spans) > 3 else "")


def json_rows(judged: Mapping[str, Judged], stage: Mapping[str, Mapping[str, Interval]]) -> list[dict[str, Any]]:
    """One row per system, part and score; what is not finite is null."""
    scored = [
        (system, by, part, score, interval)
        for system, one in judged.items()
        for by, rows in one.parts.items()
        for part, scores in rows.items()
        for score, interval in scores.items()
    ]
    scored += [
        (system, "kind of negative", kind, "false_positive_rate", rate)
        for system, one in judged.items()
        for kind, (_, rate) in one.negatives.items()
    ]
    scored += [
        ("auscult", by, part, "among_candidates", interval) for by, rows in stage.items() for part, interval in rows.items()
    ]
    return [
        {"system": system, "by": by, "part": part, "score": score}
        | {end: _finite(getattr(interval, end)) for end in ("value", "low", "high")}
        for system, by, part, score, interval in scored
    ]


def json_details(judged: Mapping[str, Judged]) -> dict[str, Any]:
    """What is no score: transfer of thresholds, negatives of highest score, seconds, memory, notes."""
    return {
        name: {
            "seconds": round(one.seconds, 1),
            "peak_gb": _finite(round(one.peak_gb, 2)),
            "notes": one.notes,
            "transfer": [
                dataclasses.asdict(row)
                | {"threshold": _finite(row.threshold), "recall": _finite(row.recall)}
                | {"precision": [_finite(getattr(row.precision, end)) for end in ("value", "low", "high")]}
                for row in one.transfer
            ],
            "negatives of highest score": one.suspects,
        }
        for name, one in judged.items()
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def facts(benchmark: Benchmark) -> dict[str, int]:
    """How many of what."""
    positives = [truth for truth in benchmark.truths if truth.reference_id is not None]
    return {
        "references": len(benchmark.references),
        "of them distractors": benchmark.distractors,
        "background clips": len(benchmark.background),
        "null clips": len(benchmark.null),
        "positives": len(positives),
        "negatives": len(benchmark.queries) - len(positives),
        "reversed copies": len(benchmark.apart),
        "kinds of transformation": len({truth.kind for truth in positives}),
        "sources of positives": len({truth.source for truth in positives}),
        "sources of negatives": len({truth.source for truth in benchmark.truths if truth.reference_id is None}),
    }
