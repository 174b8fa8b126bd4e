"""What finished stages of a seed have left: its classes, near-duplicates, and generated clips."""

from __future__ import annotations

import json
from pathlib import Path

from ...corpus import Clip
from ...duplicates import CLUSTERS
from ...folders import CARD
from ...generation.clips import MANIFEST, Row, read_rows
from ..sets import read_manifest
from .arms import COPIES, DUPLICATES, MADE, SETS, Run
from .takes import origin


def frequency_of(folder: Path, seed: int) -> dict[str, int]:
    """Training clips of each class, the most frequent first."""
    found: dict[str, int] = json.loads((folder / SETS / f"s{seed}" / CARD).read_text("utf-8"))["frequency"]
    return found


def copies_found(folder: Path, seed: int) -> tuple[int, int]:
    """How many of a seed's near-duplicates deduplication has put beside their originals, and how many there are."""
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / DUPLICATES / f"s{seed}" / CLUSTERS).to_pylist()
    cluster = {row["clip_id"]: row["cluster_id"] for row in rows}
    copies = [clip.clip_id for clip in read_manifest(folder / SETS / f"s{seed}" / COPIES)]
    return sum(one in cluster and cluster[one] == cluster.get(origin(one)) for one in copies), len(copies)


def rows_of(folder: Path, run: Run) -> list[Row]:
    """The manifest of a run."""
    return read_rows(folder / MADE / run.name / MANIFEST)


def made_clips(folder: Path, run: Run) -> list[Clip]:
    """The generated clips of a run, under ids of their own among all runs: ``WAY/000012-00``."""
    return [
        Clip(
            f"{run.way}/{row['clip_id']}",
            str(folder / MADE / run.name / row["path"]),
            caption=row["caption"],
            labels=tuple(row.get("labels", ())),
        )
        for row in rows_of(folder, run)
    ]
