"""Stores of generated vectors, written by the functions that write real ones, for benchmarks of corpora not at hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from auscult.descriptors import load_descriptor
from auscult.storage import digest_of, open_folder
from auscult.storage.folder import write_folder_card
from auscult.store import CLIP_SCHEMA, CLIPS, KIND, SKIPPED, SKIPPED_SCHEMA, DescriptorStore, Part, write_part

SHARD = 4096


def mel_like(rng: np.random.Generator, rows: int, dimension: int) -> np.ndarray:
    """(rows, dimension) float16: random dB values with a spectrum common to all, cut to [-40, 0]."""
    vectors = rng.standard_normal((rows, dimension), dtype=np.float32) * 6
    vectors += rng.standard_normal((rows, 1), dtype=np.float32) * 4
    vectors += np.linspace(-12, -28, dimension, dtype=np.float32)
    return np.clip(vectors, -40, 0, out=vectors).astype(np.float16)


def make_store(path: Path, rows: int, *, seed: int = 0) -> DescriptorStore:
    """Write a store of ``rows`` clips of one window each, described by ``mel`` as far as its card says."""
    descriptor, rng, folder = load_descriptor("mel"), np.random.default_rng(seed), open_folder(path)
    folder.make()
    folder.below("vectors").make()
    parts, ids = {}, [f"{number:09d}.wav" for number in range(rows)]
    for number, start in enumerate(range(0, rows, SHARD)):
        owners = ids[start : start + SHARD]
        vectors = mel_like(rng, len(owners), descriptor.dimension)
        parts[write_part(folder, number, Part([], []), owners, [0.0] * len(owners), vectors, descriptor.spec)] = len(owners)
    nothing = pa.array([None] * rows)
    table = pa.table(
        {name: nothing.cast(kind) for name, kind in zip(CLIP_SCHEMA.names, CLIP_SCHEMA.types, strict=True)}, schema=CLIP_SCHEMA
    )
    known = {
        "clip_id": pa.array(ids),
        "path": pa.array(ids),
        "sample_digest": pa.array(ids),
        "start_s": pa.array(np.zeros(rows)),
        "duration_s": pa.array(np.full(rows, 10.0)),
        "n_windows": pa.array(np.ones(rows, np.int32)),
    }
    for name, column in known.items():
        table = table.set_column(table.column_names.index(name), name, column)
    tables = {CLIPS: table, SKIPPED: SKIPPED_SCHEMA.empty_table()}
    for name, content in tables.items():
        buffer = io.BytesIO()
        pq.write_table(content, buffer, compression="zstd")
        folder.write(name, buffer.getvalue())
    counts = {"clips": rows, "windows": rows, "skipped": 0, "not_audio": 0, "vanished": 0}
    card = {
        "spec": str(descriptor.spec),
        "dimension": descriptor.dimension,
        "dtype": "float16",
        "window_s": descriptor.window_samples / descriptor.sample_rate_hz,
        "counts": counts,
        "tables": {name: digest_of(folder.read(name)) for name in tables},
        "parts": parts,
    }
    write_folder_card(folder, KIND, card)
    return DescriptorStore.open(path)
