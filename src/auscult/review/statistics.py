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
from .queue import load_pairs
from .verdicts import VERDICTS, VerdictStore
from .verified import precision, verified_clips


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
        tells); ``agreement`` of every two reviewers, and ``controls`` by reviewer.
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
    return answer


def _estimates(audit: Audit, store: VerdictStore) -> dict[str, Any]:
    """The rate and the precision, each None where nothing is verified that could tell it."""
    consensus = store.consensus()
    found = verified_clips(audit.queries(), consensus, matches=audit.matches(), samples=store.samples())
    if not any(tally.verified for tally in found.tallies):
        return {"rate": None, "precision": None}
    rate = stratified_rate(found.tallies, extra=found.extra, notes=found.notes)
    flagged = found.tallies[0]
    return {"rate": asdict(rate), "precision": asdict(precision(flagged)) if flagged.verified else None}
