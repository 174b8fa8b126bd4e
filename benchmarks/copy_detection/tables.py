"""The results as rows for JSON and as a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from auscult.folders import package_versions
from auscult.metrics.copy_detection import Interval, Prediction
from report import commit, machine

from .dataset import Benchmark

Scores = Mapping[str, Interval]
OVERALL = (
    "micro_ap",
    "recall_at_precision",
    "threshold",
    "false_positive_rate",
    "recall_at_1pct_false_positives",
    "top1",
)
PLACES = ("located", "onset_error_s", "lag_error_s", "temporal_iou")
BY_PART = ("micro_ap", "recall_at_threshold", "top1", "onset_error_s", "lag_error_s", "temporal_iou")
HEADINGS = {
    "micro_ap": "micro-AP",
    "recall_at_precision": "recall at 90 % precision",
    "recall_at_threshold": "recall at the threshold",
    "recall_at_1pct_false_positives": "recall at 1 % false positives",
    "threshold": "threshold",
    "top1": "top-1",
    "false_positive_rate": "false-positive rate",
    "located": "located",
    "onset_error_s": "onset error (s)",
    "lag_error_s": "lag error (s)",
    "temporal_iou": "temporal IoU",
}
SUSPECTS = 10  # wrong predictions of highest score, to be judged by ear before numbers are published


def cell(interval: Interval) -> str:
    """A value with its interval, as far as they exist.

    >>> cell(Interval(0.5, 0.4, 0.6)), cell(Interval(float("nan"))), cell(Interval(float("inf"), 2.0, float("inf")))
    ('0.500 [0.400, 0.600]', '-', 'none [2.000, none]')
    """
    if math.isnan(interval.value):
        return "-"
    value, low, high = ("none" if math.isinf(x) else f"{x:.3f}" for x in (interval.value, interval.low, interval.high))
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def table(first: str, rows: Mapping[str, Scores], columns: Sequence[str]) -> list[str]:
    """Lines of a Markdown table, a row per name; columns that hold nothing are left out."""
    columns = [column for column in columns if any(not math.isnan(row[column].value) for row in rows.values())]
    lines = [f"| {first} | {' | '.join(HEADINGS[column] for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cell(row[column]) for column in columns)} |" for name, row in rows.items()]


def json_rows(results: Mapping[str, Mapping[str, Mapping[str, Scores]]]) -> list[dict[str, Any]]:
    """One row per system, part and score; what is not finite is null."""
    return [
        {"system": system, "by": by, "part": part, "score": score}
        | {end: _finite(getattr(interval, end)) for end in ("value", "low", "high")}
        for system, parts in results.items()
        for by, rows in parts.items()
        for part, scores in rows.items()
        for score, interval in scores.items()
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def suspects(benchmark: Benchmark, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """The wrong predictions of highest score: each is an error of the system, or a copy that the benchmark overlooked."""
    truths = {truth.query_id: truth for truth in benchmark.truths}
    wrong = [p for p in predictions if truths[p.query_id].reference_id != p.reference_id]
    wrong.sort(key=lambda p: (-p.score, p.query_id))
    return [
        {
            "query_id": p.query_id,
            "query_source": truths[p.query_id].source,
            "kind": truths[p.query_id].kind,
            "true": truths[p.query_id].reference_id,
            "claimed": p.reference_id,
            "score": p.score,
        }
        for p in wrong[:SUSPECTS]
    ]


def facts(benchmark: Benchmark) -> dict[str, int]:
    """How many of what."""
    positives = [truth for truth in benchmark.truths if truth.reference_id is not None]
    return {
        "references": len(benchmark.references),
        "background clips": len(benchmark.background),
        "positives": len(positives),
        "negatives": len(benchmark.queries) - len(positives),
        "kinds of transformation": len({truth.kind for truth in positives}),
        "sources of queries": len({truth.source for truth in benchmark.truths}),
    }


def page(
    benchmark: Benchmark,
    results: Mapping[str, Mapping[str, Mapping[str, Scores]]],
    *,
    command: str,
    sounds: str,
    options: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """The Markdown page: what was measured, on what, the tables, and what they do not show."""
    counts = ", ".join(f"{count} {name}" for name, count in facts(benchmark).items())
    overall = {system: parts["all"]["all"] for system, parts in results.items()}
    lines = [
        "# Copy detection",
        "",
        "Written by the command below; nothing on this page is typed by hand.",
        "",
        "```",
        command,
        "```",
        "",
        f"{sounds}: {counts}. Predictions per query: {options['top']}. Roles are dealt by source (uploader): no negative, "
        "background clip or bed shares one with a reference. One ranking of all queries, one threshold.",
        "",
        "Intervals: 95 %, bootstrap by source. *Located*: the best prediction is right and has spans; over these, the "
        "medians of the onset error (where the copied sound begins in the query) and of the lag error (which moment of the "
        "reference plays), and the mean temporal IoU in the query. *False-positive rate*: of the negatives, at the "
        "threshold; *recall at 1 % false positives* is at another, stricter one, whatever the share of copies. *none*: no "
        "threshold reaches the precision.",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
        "## All queries",
        "",
        *table("system", overall, OVERALL),
        "",
        *_places(overall),
        "## By group",
        "",
        "A group's positives against all negatives; *recall at the threshold*: at the one threshold of the whole benchmark.",
        "",
    ]
    for by, title in (("group", ""), ("kind", "## By kind")):
        lines += [title, ""] if title else []
        for system, parts in results.items():
            lines += [f"### {system}", "", *table(by, parts[by], BY_PART), ""]
    lines += [
        "## What this does not show",
        "",
        f"Copies are {facts(benchmark)['positives']} of {len(benchmark.queries)} queries here, and few among the outputs of a "
        "model: the precision there is lower at the same threshold. There are few hundred references; more references bring "
        "more chance matches. 15 of the kinds are verbatim copies under another surface, which are the easiest.",
        "",
        "## Made with",
        "",
        f"Commit {commit()}; seed {options['seed']}; {machine()['processor']}, {machine()['cores']} cores, "
        f"{machine()['memory_gb']} GB; {', '.join(f'{name} {version}' for name, version in package_versions().items())}.",
    ]
    return "\n".join(lines) + "\n"


def _places(overall: Mapping[str, Scores]) -> list[str]:
    """The table of those systems that say where."""
    placed = {system: scores for system, scores in overall.items() if scores["located"].value > 0}
    return [*table("system", placed, PLACES), ""] if placed else []
