"""Which pairs of a study's audits are worth hearing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..audit import Audit
from ..report.page import pair_sides
from .config import StudyAudits
from .flagging import Row, is_flagged, is_undecided

FLAGGED, NOT_FLAGGED, UNDECIDED = "flagged", "not flagged", "too few null clips to tell"


def pairs_to_hear(audits: StudyAudits, name: str, places: Iterable[Path]) -> list[Row]:
    """Of the audits by one descriptor, one a model: the pairs of :func:`picked`, each with the name of its audit's folder."""
    found: list[Row] = []
    for place in places:
        audit = Audit.open(place)
        undecided = is_undecided(audits, name, audit.card["calibration"]["null_clips"])
        for row in audit.matches().to_pylist():
            if row["rank"] == 1:
                said = UNDECIDED if undecided else FLAGGED if is_flagged(audits, name, row) else NOT_FLAGGED
                found.append({**row, "audit": place.name, "said": said})
    return [
        {"what": what, "score": row["score"], "said": row["said"], "audit": row["audit"], **pair_sides(row)}
        for what, row in picked(found)
    ]


def picked(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """The pair with the highest score, which is the worst; the highest that is flagged, where there is one; the middle one.

    Examples
    --------
    >>> rows = [{"score": score, "audit": "a", "query_id": str(score), "said": "flagged" if score == 4 else "not flagged"}
    ...         for score in (2, 5, 4, 1, 3)]
    >>> [(what, row["score"]) for what, row in picked(rows)]
    [('the highest score', 5), ('the highest score that is flagged', 4), ('the middle score', 3)]
    """
    best = sorted(rows, key=lambda row: (-row["score"], row["audit"], row["query_id"]))
    if not best:
        return []
    flagged = [row for row in best if row["said"] == FLAGGED]
    more = [("the highest score that is flagged", flagged[0])] if flagged and best[0]["said"] != FLAGGED else []
    return [("the highest score", best[0]), *more, ("the middle score", best[len(best) // 2])]
