"""Which clips are the same: the same place on disk, or the same samples; and samples that do not depend on the order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from .search import IntArray

_SHOWN = 3  # ids that a message names


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


def recordings(clip_ids: Sequence[str], group: str) -> list[str]:
    r"""Name of the recording that each clip was cut from.

    Parameters
    ----------
    clip_ids
        Of the clips.
    group
        Regular expression whose first group names the recording in the id.

    Raises
    ------
    ValueError
        It is none, has no group, or finds nothing in an id.

    Examples
    --------
    >>> recordings(["1-100032-A", "1-100032-B", "2-77-A"], r"^(\d+-\d+)-")
    ['1-100032', '1-100032', '2-77']
    """
    pattern = recording_pattern(group)
    found = [pattern.search(name) for name in clip_ids]
    missed = [name for name, match in zip(clip_ids, found, strict=True) if match is None or match[1] is None]
    if missed:
        named = ", ".join(repr(name) for name in missed[:_SHOWN]) + (", ..." if len(missed) > _SHOWN else "")
        raise ValueError(
            f"group = {group!r} does not match {len(missed):,} of {len(clip_ids):,} clip ids ({named}); a clip's id is its "
            "clip_id, or its path where the manifest has no such column"
        )
    return [match[1] for match in found if match is not None]


def recording_pattern(group: str) -> re.Pattern[str]:
    r"""A regular expression on clip ids whose first group names the recording.

    Raises
    ------
    ValueError
        It is none, or has no group.

    Examples
    --------
    >>> recording_pattern(r"^(\d+)-").search("17-3")[1]
    '17'
    """
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ValueError(f"group is no regular expression ({error}): {group!r}") from error
    if pattern.groups < 1:
        raise ValueError(f"group needs parentheses around the name of the recording, got {group!r}")
    return pattern


def kept_apart(queries: pa.Table, references: pa.Table, group: str | None = None) -> list[IntArray]:
    """Numbers that are equal for a query and the references that it is not compared with: itself, and with ``group`` all clips
    of its recording."""
    if group is None:
        return same_place(queries, references)
    return _codes(*(recordings(table["clip_id"].to_pylist(), group) for table in (queries, references)))


def same_audio(*tables: pa.Table) -> list[IntArray]:
    """Numbers that are equal for clips with identical samples."""
    return _codes(*(table["sample_digest"].to_pylist() for table in tables))


def shared_audio(left: pa.Table, right: pa.Table) -> int:
    """How many clips of the left table have the samples of one of the right."""
    mine, theirs = same_audio(left, right)
    return int(np.count_nonzero(np.isin(mine, theirs)))


def unshared_rows(left: pa.Table, right: pa.Table, group: str | None = None) -> IntArray:
    """Rows of the left table whose samples no clip of the right has that they are compared with, see :func:`kept_apart`.

    Without ``group``, that is every clip of the right.
    """
    mine, theirs = same_audio(left, right)
    if group is None:
        return np.flatnonzero(~np.isin(mine, theirs))
    apart = kept_apart(left, right, group)
    where: dict[int, set[int]] = {}
    for sound, recording in zip(theirs.tolist(), apart[1].tolist(), strict=True):
        where.setdefault(sound, set()).add(recording)
    found = zip(mine.tolist(), apart[0].tolist(), strict=True)
    return np.flatnonzero([not where.get(sound, set()) - {recording} for sound, recording in found])


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
