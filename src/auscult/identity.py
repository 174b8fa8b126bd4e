"""Which clips are the same: the same place on disk, or the same samples; and samples that do not depend on the order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from .search import IntArray


def sample_clips(clips: pa.Table, wanted: int, seed: int) -> IntArray:
    """Rows of a random sample of clips, the same clips in the same order however the corpus is ordered.

    The order is that of a hash of seed, sound and id; all rows are in it if there are no more than wanted.
    """
    keys = [
        xxhash.xxh3_64_intdigest(f"{seed}:{digest}:{clip_id}".encode())
        for digest, clip_id in zip(clips["sample_digest"].to_pylist(), clips["clip_id"].to_pylist(), strict=True)
    ]
    return np.argsort(np.array(keys, np.uint64), kind="stable")[:wanted].astype(np.int64)


def same_place(*tables: pa.Table) -> list[IntArray]:
    """Numbers that are equal for clips that are the same stretch of the same file, whatever their ids."""
    return _codes(*(list(zip(t["path"].to_pylist(), t["start_s"].to_pylist(), strict=True)) for t in tables))


def same_audio(*tables: pa.Table) -> list[IntArray]:
    """Numbers that are equal for clips with identical samples."""
    return _codes(*(table["sample_digest"].to_pylist() for table in tables))


def shared_audio(left: pa.Table, right: pa.Table) -> int:
    """How many clips of the left table have the samples of one of the right."""
    mine, theirs = same_audio(left, right)
    return int(np.count_nonzero(np.isin(mine, theirs)))


def unshared_rows(left: pa.Table, right: pa.Table) -> IntArray:
    """Rows of the left table whose samples no clip of the right has."""
    mine, theirs = same_audio(left, right)
    return np.flatnonzero(~np.isin(mine, theirs))


def same_place_warning(generated: pa.Table, references: pa.Table) -> list[str]:
    """A note if generated clips are themselves files of the training set."""
    mine, theirs = same_place(generated, references)
    same = int(np.count_nonzero(np.isin(mine, theirs)))
    if not same:
        return []
    return [f"{same} generated clips are the same files as training clips, and were not compared with themselves."]


def _codes(*columns: list[Any]) -> list[IntArray]:
    """Equal values get equal numbers, across all columns; None gets -1."""
    numbers: dict[Any, int] = {}
    return [
        np.array([-1 if value is None else numbers.setdefault(value, len(numbers)) for value in column], np.int64)
        for column in columns
    ]
