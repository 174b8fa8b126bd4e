"""What audits with several descriptors found once people looked: flagged, verified and shared, as the audit paper's table."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..ensembles import Scores
from .curves import audit_curve
from .fields import majority
from .verdicts import REVIEW_DB, WITHDRAWN, VerdictStore, pair_id
from .verified import REPLICATION, UNSURE, verified_clips

SCHEMA = pa.schema(
    [
        ("descriptor", pa.string()),
        *((name, pa.int64()) for name in ("flagged", "verified", "unsure", "replications", "shared", "same_reference")),
        ("average_precision", pa.float64()),
    ]
)


def joint_consensus(folders: Sequence[str | Path]) -> dict[str, str]:
    """Consensus of the verdicts in all the folders' ``review.db``; a folder without one has none.

    A pair has the same id in every audit. A reviewer's latest verdict on it counts, whichever folder it was given in, and
    counts once; then as ``VerdictStore.consensus``. Control pairs are left out.
    """
    latest: dict[tuple[str, str], tuple[str, str]] = {}
    controls: set[str] = set()
    for folder in folders:
        if not (Path(folder) / REVIEW_DB).is_file():
            continue  # opening would make one
        with VerdictStore.open(folder) as store:
            rows, known = store.history(), store.controls()
        controls |= known.keys()
        for pair, reviewer, verdict, decided_at in zip(
            *(rows[name].to_pylist() for name in ("pair_id", "reviewer", "verdict", "decided_at")), strict=True
        ):
            if decided_at >= latest.get((pair, reviewer), ("", ""))[0]:
                latest[pair, reviewer] = decided_at, verdict
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for (pair, _), (_, verdict) in latest.items():
        if verdict != WITHDRAWN and pair not in controls:
            votes[pair][verdict] += 1
    return {pair: majority(count) for pair, count in votes.items()}


def verified_table(audits: Sequence[Scores], verdicts: Mapping[str, str]) -> pa.Table:
    """How many of the clips that each descriptor flags are replications, and how many of these another descriptor finds, too.

    A flagged clip counts by its best match in that audit: two descriptors that lead to unequal training clips have a verdict
    each.

    Parameters
    ----------
    audits
        Of the same generated clips (``ensembles.open_scores``).
    verdicts
        Verdict of each pair by its id (:func:`joint_consensus`).

    Returns
    -------
    pyarrow.Table
        One row an audit, in the order given: ``descriptor, flagged``, of these ``verified`` (with a verdict), of these
        ``unsure`` and ``replications``, of these ``shared`` (clips whose best match in another audit is flagged and a
        replication, too), and of these ``same_reference`` (it is the same training clip); ``average_precision`` of the scores
        against the verdicts (null as long as a flagged clip has none, or none is a replication).

    References
    ----------
    Bralios et al., ICASSP 2024, section 4: of 178 flagged clips 31 (mel) and 28 (CLAP) are replicas, 2 of them shared.
    """
    found = [_replications(audit, verdicts) for audit in audits]
    rows: list[dict[str, Any]] = []
    for place, (audit, (counts, mine)) in enumerate(zip(audits, found, strict=True)):
        others = [theirs for other, (_, theirs) in enumerate(found) if other != place]
        shared = [query for query in mine if any(query in theirs for theirs in others)]
        same = [query for query in shared if any(theirs.get(query) == mine[query] for theirs in others)]
        rows.append({"descriptor": audit.name, **counts, "shared": len(shared), "same_reference": len(same)})
        rows[-1]["average_precision"] = _average_precision(audit, verdicts)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _average_precision(audit: Scores, verdicts: Mapping[str, str]) -> float | None:
    """Of the audit's scores against all verdicts; None as long as a flagged clip has none, or none is a replication."""
    try:
        return audit_curve(audit.queries, verified_clips(audit.queries, verdicts)).average_precision
    except ValueError:
        return None


def _replications(audit: Scores, verdicts: Mapping[str, str]) -> tuple[dict[str, int], dict[str, str]]:
    """Counts of an audit's flagged clips, and the training clip of each that is a replication."""
    flagged = audit.queries.filter(audit.queries["flagged"])
    best = dict(zip(flagged["query_id"].to_pylist(), flagged["reference_id"].to_pylist(), strict=True))
    decided = {
        query: verdicts[pair]
        for query, reference in best.items()
        if reference is not None and (pair := pair_id(query, reference)) in verdicts
    }
    mine = {query: best[query] for query, verdict in decided.items() if verdict == REPLICATION}
    unsure = sum(verdict == UNSURE for verdict in decided.values())
    return {"flagged": len(best), "verified": len(decided), "unsure": unsure, "replications": len(mine)}, mine
