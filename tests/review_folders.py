"""Audits and deduplications for tests of the review: real tables of planted rows over real sound files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

from auscult.folders import write_card
from conftest import sound

RATE_HZ = 16_000
TAU = 3.0
SPAN = pa.struct([(f"{role}_{end}_s", pa.float64()) for role in ("query", "reference") for end in ("start", "end")])


def write_sounds(folder: Path, count: int = 4, duration_s: float = 1.0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"secret-{number}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        sf.write(path, sound(number, duration_s), RATE_HZ)
    return paths


def write_audit(folder: Path, clips: int = 6, *, sounds: list[Path] | None = None, caption: str = "a dog barks") -> Path:
    """An audit of ``clips`` clips with two matches each: the first third flagged, scores from 9 downward, all distinct."""
    folder.mkdir(parents=True, exist_ok=True)
    sounds = sounds or write_sounds(folder.parent / f"{folder.name}-sounds")
    queries = [f"query-clip-{number}" for number in range(clips)]
    scores = 9.0 - 8.0 * np.arange(clips) / clips
    flagged = np.arange(clips) < max(1, clips // 3)
    rows = np.repeat(np.arange(clips), 2)
    rank = np.tile([1, 2], clips)
    n = len(rows)
    span = {f"{role}_{end}_s": value for role in ("query", "reference") for end, value in (("start", 0.1), ("end", 0.6))}
    table = {
        "query_id": [queries[row] for row in rows],
        "query_path": [str(sounds[row % len(sounds)]) for row in rows],
        "reference_id": [f"reference-clip-{row}-{place}" for row, place in zip(rows, rank, strict=True)],
        "reference_path": [str(sounds[(row + place - 1) % len(sounds)]) for row, place in zip(rows, rank, strict=True)],
        "rank": pa.array(rank, pa.int32()),
        "similarity": scores[rows] + 0.125,
        "bias": np.full(n, 0.125),
        "score": scores[rows] - 0.001 * (rank - 1),
        "p_value": np.linspace(0.0012345, 0.9123457, n),
        "flagged": flagged[rows] & (rank == 1),
        "query_start_s": np.full(n, 0.1),
        "query_end_s": np.full(n, 0.6),
        "reference_start_s": np.full(n, 0.1),
        "reference_end_s": np.full(n, 0.6),
        "lag_s": np.where(rank == 1, 0.0, np.nan),
        "descriptor": ["contrast/1()"] * n,
        "query_caption": [caption] * n,
        "reference_caption": [caption] * n,
        "query_offset_s": np.zeros(n),
        "reference_offset_s": np.zeros(n),
        "tempo": np.ones(n),
        "pitch_semitones": np.zeros(n),
        "spans": pa.array([[span]] * n, pa.list_(SPAN)),
    }
    spans = table["spans"].flatten()
    evidence = pa.array(np.full(n, 77.25))
    names = [field.name for field in SPAN]
    whole = pa.StructArray.from_arrays([*(spans.field(name) for name in names), evidence], [*names, "evidence"])
    table["spans"] = pa.ListArray.from_arrays(pa.array(np.arange(n + 1), pa.int32()), whole)
    matches = pa.table(table)
    pq.write_table(matches, folder / "matches.parquet")
    first = matches.filter(pa.array(rank == 1))
    pq.write_table(
        pa.table(
            {
                "query_id": first["query_id"],
                "path": first["query_path"],
                "caption": first["query_caption"],
                "duration_s": np.full(clips, 1.0),
                "reference_id": first["reference_id"],
                "similarity": first["similarity"],
                "score": first["score"],
                "p_value": first["p_value"],
                "flagged": first["flagged"],
            }
        ),
        folder / "queries.parquet",
    )
    pq.write_table(pa.table({"reference_id": ["r"], "nearest_id": ["s"], "score": [1.0]}), folder / "training.parquet")
    counts = {"generated": clips, "compared": clips, "flagged": int(flagged.sum()), "skipped": 0}
    card = {"counts": counts, "threshold": {"tau": TAU, "rule": "fdr"}, "descriptor": "contrast/1()", "warnings": []}
    write_card(folder, "audit", card)
    return folder


def write_dedup(folder: Path, clusters: int = 2, size: int = 3, *, sounds: list[Path] | None = None) -> Path:
    """A deduplication with clusters of equal size, whose first clip is kept, and one pair that was not counted."""
    folder.mkdir(parents=True, exist_ok=True)
    sounds = sounds or write_sounds(folder.parent / f"{folder.name}-sounds")
    rows = [
        {
            "cluster_id": cluster,
            "clip_id": f"cluster-clip-{cluster}-{member}",
            "path": str(sounds[(cluster + member) % len(sounds)]),
            "keep": member == 0,
            "reason": "kept: longest" if member == 0 else "similar",
            "similarity_to_kept": None if member == 0 else 0.987654 - 0.01 * member - 0.1 * cluster,
            "kept_clip_id": None if member == 0 else f"cluster-clip-{cluster}-0",
            "chained": False,
            "captions_differ": False,
            "caption": "rain",
            "start_s": 0.0,
            "duration_s": 1.0,
            "sample_rate_hz": RATE_HZ,
            "set": "corpus",
        }
        for cluster in range(clusters)
        for member in range(size)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "clusters.parquet")
    pair = {"first_id": "pair-clip-a", "first_path": str(sounds[0]), "second_id": "pair-clip-b", "second_path": str(sounds[1])}
    pair |= {"similarity": 0.456789, "score": 0.456789, "first_coverage": 1.0, "second_coverage": 1.0}
    pq.write_table(pa.Table.from_pylist([{**pair, "kind": "similar", "duplicate": False}]), folder / "pairs.parquet")
    card = {"counts": {"clips": 20, "clusters": clusters}, "threshold": {"tau": 0.5}, "descriptor": "mel/1()", "warnings": []}
    write_card(folder, "dedup", card)
    return folder
