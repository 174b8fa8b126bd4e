"""What the verdicts so far say: counts for each reviewer, and what can be estimated from them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from .verdicts import VERDICTS, VerdictStore


def review_statistics(folder: Path, store: VerdictStore, *, counts_only: bool = False) -> dict[str, Any]:
    """Verdicts and decisions in force for each reviewer; and the estimates, unless these would tell too much."""
    latest = store.latest()
    counts: dict[str, Counter[str]] = {}
    for reviewer, verdict in zip(latest["reviewer"].to_pylist(), latest["verdict"].to_pylist(), strict=True):
        counts.setdefault(reviewer, Counter())[verdict] += 1
    clusters = Counter(store.latest_clusters()["reviewer"].to_pylist())
    return {
        "verdicts": latest.num_rows,
        "pairs": len(set(latest["pair_id"].to_pylist())),
        "reviewers": {
            name: {
                **{verdict: counts.get(name, Counter())[verdict] for verdict in VERDICTS},
                "clusters": clusters[name],
            }
            for name in sorted({*counts, *clusters})
        },
    }
