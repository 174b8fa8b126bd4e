"""What the verdicts so far say: counts for each reviewer, the rate, the threshold's precision, and how well reviewers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..audit import KIND as AUDIT_KIND
from ..audit import Audit
from ..folders import read_card
from .agreement import against_controls, agreement
from .clusters import ReviewClusters
from .estimate import stratified_rate
from .fields import pair_id
from .queue import load_pairs
from .verdicts import VERDICTS, VerdictStore
from .verified import UNSURE, Verified, precision, verified_clips

LEAST_KAPPA = 0.6  # "substantial" agreement begins there
LEAST_CONTROL, LEAST_CONTROL_HIGH = 0.8, 0.9  # share of controls recognized, and the upper bound of its interval


@dataclass(frozen=True)
class Here:
    """Pairs and clusters that a folder lists, by name."""

    pairs: Container[object]
    clusters: Container[object]

    @classmethod
    def read(cls, folder: Path) -> Here:
        """Of an audit or a deduplication."""
        pairs = load_pairs(folder)
        return cls(pairs.every_row, ReviewClusters.load(folder, pairs.kind))


def review_statistics(
    folder: Path, store: VerdictStore, *, counts_only: bool = False, only: str | None = None, here: Here | None = None
) -> dict[str, Any]:
    """Statistics of one folder's verdicts, as JSON can hold them; imported ones on what it does not list do not count.

    Parameters
    ----------
    folder
        Of an audit or a deduplication.
    store
        Its verdicts.
    counts_only
        Leave out all that would tell a reviewer which pairs are flagged or controls, or what others decided: then the counts
        are all there is.
    only
        Count this reviewer's verdicts, and nobody else's; goes with ``counts_only``.
    here
        What the folder lists; read, if it is not known.

    Returns
    -------
    dict
        ``verdicts``, ``pairs`` and, by name, ``reviewers``; of an audit ``rate`` and ``precision`` (None as long as no verdict
        tells); ``agreement`` of every two reviewers, ``controls`` by reviewer, and ``warnings``: sentences about reviewers who
        agree too little or miss controls.
    """
    here, truth = here or Here.read(folder), {pair: control.truth for pair, control in store.controls().items()}
    latest = store.latest(only)
    latest = latest.filter(
        pa.array([pair in here.pairs or pair in truth for pair in latest["pair_id"].to_pylist()], pa.bool_())
    )
    names, verdicts = latest["reviewer"].to_pylist(), latest["verdict"].to_pylist()
    counts: dict[str, Counter[str]] = {}
    for reviewer, verdict in zip(names, verdicts, strict=True):
        counts.setdefault(reviewer, Counter())[verdict] += 1
    decided = store.latest_clusters(only)
    keyed = zip(decided["reviewer"].to_pylist(), decided["cluster_key"].to_pylist(), strict=True)
    clusters = Counter(reviewer for reviewer, key in keyed if key in here.clusters)
    reviewers = sorted({*counts, *clusters})
    answer: dict[str, Any] = {
        "verdicts": latest.num_rows,
        "pairs": len(set(latest["pair_id"].to_pylist())),
        "reviewers": {
            name: {verdict: counts.get(name, Counter())[verdict] for verdict in VERDICTS} | {"clusters": clusters[name]}
            for name in reviewers
        },
    }
    if counts_only or only is not None:
        return answer
    if read_card(folder)["kind"] == AUDIT_KIND:
        answer |= _estimates(Audit.open(folder), store)
    answer["agreement"] = [asdict(one) for one in agreement(latest, exclude=truth.keys())]
    on_controls = {name: against_controls(store.decided(name), truth) for name in counts}
    answer["controls"] = {
        name: asdict(result) for name, result in on_controls.items() if result.sensitivity or result.specificity
    }
    answer["warnings"] = _warnings(answer["agreement"], answer["controls"])
    return answer


def _warnings(pairs: list[dict[str, Any]], controls: dict[str, dict[str, Any]]) -> list[str]:
    """What makes the verdicts less reliable than their number says."""
    found = []
    for one in pairs:
        if one["kappa"] is not None and one["kappa"]["kappa"] < LEAST_KAPPA:
            found.append(
                f"{one['first']} and {one['second']} agree little beyond chance (Cohen's kappa {one['kappa']['kappa']:.2f} on "
                f"{one['pairs']:,} pairs, below {LEAST_KAPPA:g}): settle what counts as a replication, then decide these again."
            )
    for name, result in controls.items():
        for measure, what in (("sensitivity", "known copies"), ("specificity", "known non-copies")):
            value = result[measure]
            if value and (value["value"] < LEAST_CONTROL or value["high"] < LEAST_CONTROL_HIGH):
                found.append(
                    f"{name} recognized {value['successes']:,} of {value['trials']:,} {what} among the controls "
                    f"({value['value']:.0%}): the verdicts of {name} may be wrong as often on the other pairs."
                )
    return found


def _estimates(audit: Audit, store: VerdictStore) -> dict[str, Any]:
    """The rate and the precision, each None where nothing is verified that could tell it."""
    consensus = store.consensus()
    found = verified_clips(audit.queries(), consensus, matches=audit.matches(), samples=store.samples())
    if not any(tally.verified for tally in found.tallies):
        return {"rate": None, "precision": None}
    rate = stratified_rate(found.tallies, extra=found.extra, notes=(*found.notes, *_disagreements(audit, store, found)))
    flagged = found.tallies[0]
    return {"rate": asdict(rate), "precision": asdict(precision(flagged)) if flagged.verified else None}


def _disagreements(audit: Audit, store: VerdictStore, found: Verified) -> list[str]:
    """A sentence that tells pairs that reviewers call unsure from those on which they disagree, which count alike."""
    votes: dict[str, Counter[str]] = {}
    latest = store.latest()
    for pair, verdict in zip(latest["pair_id"].to_pylist(), latest["verdict"].to_pylist(), strict=True):
        votes.setdefault(pair, Counter())[verdict] += 1
    queries = audit.queries()
    best = zip(queries["query_id"].to_pylist(), queries["reference_id"].to_pylist(), strict=True)
    counted = [votes[pair_id(*pair)] for pair in best if pair[1] is not None and found.clips.get(pair[0]) == UNSURE]
    disputed = sum(2 * cast[UNSURE] <= cast.total() for cast in counted)
    if not disputed:
        return []
    return [f"Of these {len(counted):,}, reviewers call {len(counted) - disputed:,} unsure and disagree on {disputed:,}."]
