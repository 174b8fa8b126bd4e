"""The one place of the server that writes: a single thread, whose memory of what is decided is never behind the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from .verdicts import WITHDRAWN, VerdictStore, pair_id

T = TypeVar("T")


class Decided(NamedTuple):
    """A reviewer's verdict in force, with its note."""

    verdict: str
    note: str


class Ledger:
    """Verdicts of each reviewer, in memory and on disk.

    Everything runs in one thread: commits queue up there instead of contending for the database's lock, and no answer can be
    older than a commit that was acknowledged before it. Other processes may write to the same database; what they wrote is
    seen when a queue is asked for.
    """

    def __init__(self, store: VerdictStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="verdicts")
        self._pairs: dict[str, dict[str, Decided]] = {}

    def close(self) -> None:
        """Finish what is waiting."""
        self._thread.shutdown(wait=True)

    def _run(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def decided(self, reviewer: str) -> Mapping[str, Decided]:
        """Verdicts in force of one reviewer, by pair id."""
        known = self._pairs.get(reviewer)
        return self._run(lambda: self._load(reviewer)) if known is None else known

    def refreshed(self, reviewer: str) -> Mapping[str, Decided]:
        """The same, read from the disk; a copy that later verdicts do not change."""
        return dict(self._run(lambda: self._load(reviewer, again=True)))

    def _load(self, reviewer: str, *, again: bool = False) -> dict[str, Decided]:
        if again or reviewer not in self._pairs:
            table = self._store.latest(reviewer)
            columns = (table[name].to_pylist() for name in ("pair_id", "verdict", "note"))
            self._pairs[reviewer] = {pair: Decided(verdict, note) for pair, verdict, note in zip(*columns, strict=True)}
        return self._pairs[reviewer]

    def decide(
        self, query_id: str, reference_id: str, *, reviewer: str, verdict: str, note: str, event_id: str
    ) -> dict[str, Any]:
        """Store a verdict; returns when it is on the disk. ``repeated`` tells that this event was stored before."""

        def work() -> dict[str, Any]:
            decided = self._load(reviewer)
            new = self._store.add(query_id, reference_id, reviewer=reviewer, verdict=verdict, note=note, event_id=event_id)
            if new:  # an event that comes again may be older than the verdict in force
                pair = pair_id(query_id, reference_id)
                if verdict == WITHDRAWN:
                    decided.pop(pair, None)
                else:
                    decided[pair] = Decided(verdict, note)
            return {"stored": True, "repeated": not new, "decided": len(decided)}

        return self._run(work)

    def clusters(self, reviewer: str) -> dict[str, dict[str, Any]]:
        """Decisions in force of one reviewer, by cluster key."""
        return {row["cluster_key"]: row for row in self._run(lambda: self._store.latest_clusters(reviewer)).to_pylist()}

    def decide_cluster(
        self,
        key: str,
        *,
        reviewer: str,
        decision: str,
        groups: Sequence[Sequence[str]],
        kept: Sequence[str],
        note: str,
        event_id: str,
    ) -> dict[str, Any]:
        """Store a decision on a cluster, as :meth:`decide` does a verdict."""

        def work() -> dict[str, Any]:
            new = self._store.add_cluster(
                key, reviewer=reviewer, decision=decision, groups=groups, kept=kept, note=note, event_id=event_id
            )
            return {"stored": True, "repeated": not new, "decided": self._store.latest_clusters(reviewer).num_rows}

        return self._run(work)
