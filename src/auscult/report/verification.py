"""What people made of an audit or a deduplication, for its report: rate, agreement, verdicts on each pair and cluster."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..audit import Audit
from ..duplicates import Duplicates
from ..figures import precision_recall_svg, reliability_svg
from ..folders import REVIEW_DB
from ..review.curves import PrecisionRecall, audit_curve, audit_reliability
from ..review.lists import ReviewedLists, reviewed_lists, write_reviewed_lists
from ..review.statistics import review_statistics
from ..review.verdicts import VerdictStore
from ..review.verified import verified_clips

P_VALUE_EDGES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FEWEST_FOR_FIGURE = 10  # verified pairs; fewer make bars as wide as the axis


def verdicts_by_pair(folder: Path) -> dict[str, list[dict[str, str]]]:
    """For each pair id its verdicts (``reviewer, verdict, note``), in the order of their making; empty without a review."""
    if not (folder / REVIEW_DB).is_file():
        return {}
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    with VerdictStore.open(folder) as store:
        for row in store.latest().to_pylist():
            found[row["pair_id"]].append({name: row[name] for name in ("reviewer", "verdict", "note")})
    return dict(found)


def verification(audit: Audit) -> dict[str, Any] | None:
    """The audit's verification as its page shows it; None if no listed pair has a verdict.

    Keys: ``statistics`` as `auscult review --stats` prints them, ``average_precision`` of the scores against the verdicts (None
    where the flagged clips are not all verified), ``reliability`` (an SVG element, None for a handful of pairs) and ``binned``,
    the column that it bins.
    """
    if not (audit.path / REVIEW_DB).is_file():
        return None
    with VerdictStore.open(audit.path) as store:
        statistics = review_statistics(audit.path, store)
        consensus, samples = store.consensus(), store.samples()
    if statistics["rate"] is None:
        return None
    matches = audit.matches()
    try:
        clips = verified_clips(audit.queries(), consensus, matches=matches, samples=samples)
        curve = audit_curve(audit.queries(), clips)
    except ValueError:  # not all of the flagged clips are verified, or none is a replication: the page then has no such line
        curve = None
    by_p_value = audit.card["threshold"]["rule"] == "fdr"
    binned = "p_value" if by_p_value else "score"
    found = audit_reliability(matches, consensus, column=binned, bins=P_VALUE_EDGES if by_p_value else 8)
    figure = None
    if int(np.sum(found.verified)) >= FEWEST_FOR_FIGURE:
        wide, narrow = (
            reliability_svg(
                found.edges,
                found.share,
                found.low,
                found.high,
                found.verified,
                label="p-value" if by_p_value else "score",
                even=by_p_value,
                narrow=narrow,
            )
            for narrow in (False, True)
        )
        figure = Markup(wide_and_narrow(wide, narrow))
    return {
        "statistics": statistics,
        "average_precision": None if curve is None else curve.average_precision,
        "curve": None if curve is None else _curve(curve, float(audit.card["threshold"]["tau"])),
        "reliability": figure,
        "binned": "p-value" if by_p_value else "score",
    }


def review_warnings(folder: Path) -> list[str]:
    """Why the verdicts on a folder can be relied on less than their number says; empty without a review."""
    if not (folder / REVIEW_DB).is_file():
        return []
    with VerdictStore.open(folder) as store:
        return list(review_statistics(folder, store)["warnings"])


def wide_and_narrow(wide: str, narrow: str) -> str:
    """A figure twice, for wide and for narrow screens; the style sheet shows one of them."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def _curve(curve: PrecisionRecall, tau: float) -> Markup:
    """The curve, with a point where the threshold cuts it."""
    flagged = np.flatnonzero(curve.threshold >= tau)
    at = (float(curve.recall[flagged[-1]]), float(curve.precision[flagged[-1]])) if len(flagged) else None
    wide, narrow = (precision_recall_svg(curve.recall, curve.precision, at=at, narrow=narrow) for narrow in (False, True))
    return Markup(wide_and_narrow(wide, narrow))


def reviewed_clusters(dedup: Duplicates) -> ReviewedLists | None:
    """Decisions on the clusters, and the reviewed lists written beside the machine's; None if nobody has decided anything."""
    if not (dedup.path / REVIEW_DB).is_file():
        return None
    with VerdictStore.open(dedup.path) as store:
        reviewed = reviewed_lists(dedup, store)
    if not reviewed.decisions and not reviewed.joined:
        return None
    write_reviewed_lists(dedup, reviewed)
    return reviewed
