"""What several audits of the same clips, with unequal descriptors, find together and apart.

Scores of two descriptors have unequal scales. Each is expressed in standard deviations above what unrelated clips score: the
training clips' own top-1 scores, which every audit keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .audit import Audit
from .calibration import matched_threshold, null_from_training
from .search import DoubleArray


@dataclass(frozen=True)
class Scores:
    """The tables of one audit, and what to call it.

    Attributes
    ----------
    name
        Of the descriptor.
    matches
        ``query_id, reference_id, score``, one row a listed match.
    queries
        ``query_id, reference_id, score, flagged``, one row a generated clip; score and reference are null where there was
        nothing to compare.
    training
        ``score``: top-1 scores of training clips against each other.
    """

    name: str
    matches: pa.Table
    queries: pa.Table
    training: pa.Table


def open_scores(folders: Sequence[str | Path]) -> list[Scores]:
    """Read the tables of finished audits.

    Each is called by its descriptor's name; by its whole spec where two share the name; where they share that, by its folder's
    name, with as many of the folders above it as tell the audits apart.

    Raises
    ------
    StoreError
        A folder is no finished audit.
    """
    audits = [Audit.open(folder) for folder in folders]
    specs = [str(audit.card["descriptor"]) for audit in audits]
    places = [audit.path.absolute().parts for audit in audits]
    labels = (["/".join(place[-depth:]) for place in places] for depth in range(1, max(map(len, places), default=1)))
    candidates = [[spec.partition("/")[0] for spec in specs], specs, *labels, [str(audit.path) for audit in audits]]
    names = next((names for names in candidates if len(set(names)) == len(names)), candidates[-1])
    return [Scores(name, audit.matches(), audit.queries(), audit.training()) for name, audit in zip(names, audits, strict=True)]


def combine(audits: Sequence[Scores]) -> pa.Table:
    """The ensemble's score of every pair of clips that an audit lists.

    With mu and sigma the mean and standard deviation of a descriptor's training-to-training top-1 scores, its
    standardized score is ``z = (score - mu) / sigma``; the ensemble's score of a pair is the largest z of the descriptors
    that list the pair. A pair that a descriptor does not list is below that descriptor's best k, which is no evidence
    against it.

    Parameters
    ----------
    audits
        At least two, of the same generated clips.

    Returns
    -------
    pyarrow.Table
        ``query_id, reference_id, score, descriptor`` (the one whose z it is), best first, ties by clip ids.

    Raises
    ------
    ValueError
        Fewer than two audits, unequal generated clips, or training scores without spread.

    Examples
    --------
    >>> def scores(name, score):
    ...     pairs = {"query_id": ["a"], "reference_id": ["b"], "score": [score], "flagged": [True]}
    ...     return Scores(name, pa.table(pairs), pa.table(pairs), pa.table({"score": [0.0, 2.0]}))
    >>> combine([scores("mel", 3.0), scores("clap", 5.0)]).to_pylist()
    [{'query_id': 'a', 'reference_id': 'b', 'score': 4.0, 'descriptor': 'clap'}]
    """
    _check(audits)
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for audit in audits:
        mean, deviation = _spread(audit)
        pairs = zip(audit.matches["query_id"].to_pylist(), audit.matches["reference_id"].to_pylist(), strict=True)
        standardized = (_doubles(audit.matches["score"]) - mean) / deviation
        for pair, score in zip(pairs, standardized.tolist(), strict=True):
            if np.isfinite(score) and (pair not in best or score > best[pair][0]):
                best[pair] = score, audit.name
    rows = sorted(best.items(), key=lambda row: (-row[1][0], row[0]))
    return pa.table(
        {
            "query_id": pa.array([pair[0] for pair, _ in rows], pa.string()),
            "reference_id": pa.array([pair[1] for pair, _ in rows], pa.string()),
            "score": pa.array([score for _, (score, _) in rows], pa.float64()),
            "descriptor": pa.array([name for _, (_, name) in rows], pa.string()),
        }
    )


def overlap(audits: Sequence[Scores]) -> pa.Table:
    """How far the findings of each two descriptors agree, at equal numbers of flagged clips.

    The first of two audits flags what it flags; the second's tau is set to flag as many (``calibration.matched_threshold``;
    fewer where scores are equal), as the audit paper sets its CLAP threshold.

    Parameters
    ----------
    audits
        At least two, of the same generated clips.

    Returns
    -------
    pyarrow.Table
        One row for each two audits, in the order given: ``first, second, flagged_first, flagged_second, tau_second,
        both`` (clips that both flag) and ``same_reference`` (of these, with one and the same training clip as best match).

    Raises
    ------
    ValueError
        Fewer than two audits, or unequal generated clips.

    References
    ----------
    Bralios et al., ICASSP 2024, section 4: of 178 clips that each flags, 31 (mel) and 28 (CLAP) are replicas, 2 of them shared.
    """
    _check(audits)
    rows: list[dict[str, Any]] = []
    for first, second in combinations(audits, 2):
        mine = _nearest(first, first.queries["flagged"].to_numpy(zero_copy_only=False))
        score = _doubles(second.queries["score"])
        compared = np.isfinite(score)
        tau = matched_threshold(score[compared], min(len(mine), int(compared.sum()))).tau
        theirs = _nearest(second, compared & (score >= tau))
        both = mine.keys() & theirs.keys()
        rows.append(
            {
                "first": first.name,
                "second": second.name,
                "flagged_first": len(mine),
                "flagged_second": len(theirs),
                "tau_second": tau,
                "both": len(both),
                "same_reference": sum(mine[query] == theirs[query] for query in both),
            }
        )
    return pa.Table.from_pylist(rows)


def _nearest(audit: Scores, chosen: npt.NDArray[np.bool_]) -> dict[str, str]:
    """Best match of each chosen generated clip."""
    table = audit.queries.filter(pa.array(chosen))
    return dict(zip(table["query_id"].to_pylist(), table["reference_id"].to_pylist(), strict=True))


def _spread(audit: Scores) -> tuple[float, float]:
    scores = _doubles(audit.training["score"])
    scores = null_from_training(scores)  # duplicates in the training set would widen the spread and disarm the descriptor
    if len(scores) < 2 or scores.std() == 0:
        raise ValueError(
            f"{audit.name}: its {len(scores)} training clips have no spread of scores to measure others by; audit against "
            "at least two different training clips"
        )
    return float(scores.mean()), float(scores.std())


def _check(audits: Sequence[Scores]) -> None:
    if len(audits) < 2:
        raise ValueError(f"expected at least two audits to compare, got {len(audits)}")
    first = set(audits[0].queries["query_id"].to_pylist())
    for other in audits[1:]:
        if missing := first ^ set(other.queries["query_id"].to_pylist()):
            raise ValueError(
                f"{audits[0].name} and {other.name} are audits of unequal generated clips: {len(missing)} are in one only, "
                f"for example {min(missing)}; audit the same clips with both"
            )


def _doubles(column: pa.ChunkedArray) -> DoubleArray:
    return np.asarray(column.to_numpy(), np.float64)
