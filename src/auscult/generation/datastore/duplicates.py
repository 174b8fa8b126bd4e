"""Which pairs of a datastore hold the same sound: identical and overlapping audio, and what ``auscult dedup`` found."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...duplicates import DROP, KEEP, Duplicates
from ...errors import StoreError
from ...search.exact import IntArray
from ...storage import is_url

SHORTEST_OVERLAP_S = 0.01  # stretches that follow one another may overlap by rounding


@dataclass(frozen=True)
class Known:
    """What a deduplication says.

    Attributes
    ----------
    path
        Its folder.
    card
        Its card.
    column
        What it names clips by: ``clip_id``, or ``path`` where every clip is a file.
    cluster
        The cluster of each name that is in one.
    names
        All clips that it looked at.
    """

    path: Path
    card: dict[str, Any]
    column: str
    cluster: dict[str, int]
    names: frozenset[str]

    @property
    def digest(self) -> str:
        """Of the file of clusters."""
        return str(self.card["files"]["clusters.parquet"])

    def facts(self) -> dict[str, Any]:
        """What a card says of it."""
        return {
            "path": str(self.path),
            "sha256": self.digest,
            "descriptor": self.card["descriptor"],
            "threshold": self.card["threshold"]["tau"],
            "clips": self.card["counts"]["clips"],
        }


def read_duplicates(folder: str | Path) -> Known:
    """Read a finished deduplication.

    Raises
    ------
    StoreError
        There is none, or it lists leaks into another set, which are no duplicates within this one.
    """
    found = Duplicates.open(folder)
    if found.card["mode"] != "duplicates":
        raise StoreError(
            f"{folder}: lists what leaks into another set (auscult dedup --against); run auscult dedup on the datastore's clips"
        )
    column = found.card["lists_hold"]
    named = [_named(name, column) for row in found.clusters().to_pylist() for name in [row[column]]]
    clusters = found.clusters()["cluster_id"].to_pylist()
    lines = [line for list_ in (KEEP, DROP) for line in (found.path / list_).read_text("utf-8").splitlines()]
    names = frozenset(_named(line.replace("\\n", "\n"), column) for line in lines)
    return Known(found.path, found.card, column, dict(zip(named, clusters, strict=True)), names)


def _named(name: str, column: str) -> str:
    """A clip's name in a form that two runs share: paths from the root, whatever folder they were given from."""
    return os.path.realpath(name) if column == "path" and not is_url(name) else name


def duplicate_groups(clips: pa.Table, known: Known | None, together: Mapping[str, str] | None = None) -> IntArray:
    """The group of each clip, -1 where it is alone.

    Two clips are together if their samples are identical, if they are stretches of one file that overlap, if a deduplication
    put them into one cluster, if they are named together, or if a chain of these links them.

    Parameters
    ----------
    clips
        Rows of ``clips.parquet``.
    known
        A deduplication that has looked at all of them.
    together
        By clip id: a name that clips share which are together.

    Raises
    ------
    StoreError
        It has not.
    """
    n = clips.num_rows
    samples = [digest or f"row {row}" for row, digest in enumerate(clips["sample_digest"].to_pylist())]
    kinds = [samples, _stretches(clips)]
    if known is not None:
        names = [_named(name, known.column) for name in clips[known.column].to_pylist()]
        unknown = [name for name in names if name not in known.names]
        if unknown:
            raise StoreError(
                f"{known.path}: has not looked at {len(unknown):,} of the datastore's {n:,} clips, such as {unknown[0]}; run "
                "auscult dedup on the same source"
            )
        kinds.append(
            [f"cluster {known.cluster[name]}" if name in known.cluster else f"row {row}" for row, name in enumerate(names)]
        )
    if together:
        ids = clips["clip_id"].to_pylist()
        kinds.append([f"name {together[one]}" if one in together else f"row {row}" for row, one in enumerate(ids)])
    label = _joined(n, kinds)
    alone = np.bincount(label)[label] == 1
    return np.where(alone, -1, label).astype(np.int64)


def _stretches(clips: pa.Table) -> list[str]:
    """A name for each clip, shared by those that are linked by overlaps in one file."""
    paths = [_named(path, "path") for path in clips["path"].to_pylist()]
    starts, durations = clips["start_s"].to_pylist(), clips["duration_s"].to_pylist()
    names = [""] * len(paths)
    path, end, name = "", 0.0, 0
    for row in sorted(range(len(paths)), key=lambda row: (paths[row], starts[row])):
        if paths[row] != path or starts[row] >= end - SHORTEST_OVERLAP_S:
            path, end, name = paths[row], 0.0, name + 1
        end = max(end, starts[row] + durations[row])
        names[row] = str(name)
    return names


def _joined(n: int, kinds: list[list[str]]) -> IntArray:
    """Connected components of n rows that are linked by equal names of any kind."""
    rows: list[int] = []
    nodes: list[int] = []
    first = n
    for names in kinds:
        numbers = {name: first + number for number, name in enumerate(dict.fromkeys(names))}
        rows += range(n)
        nodes += [numbers[name] for name in names]
        first += len(numbers)
    graph = coo_matrix((np.ones(len(rows)), (rows, nodes)), shape=(first, first))
    label: IntArray = connected_components(graph, directed=False)[1][:n].astype(np.int64)
    return label
