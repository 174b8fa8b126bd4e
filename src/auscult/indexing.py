"""Describe a corpus into a store: in several processes, resumable after any kill, and incremental.

Data flow: corpus -> (clip) -> worker: decode, cut, describe -> (rows, vectors) -> shard of 256 inputs -> disk.
The shards follow the order of the corpus, whatever the number of workers, so a run that was killed and continued writes
the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import Clip, Corpus, Skipped
from .corpus.folder import printable
from .describing import describe_all
from .descriptors import Descriptor
from .engine import HERE, Engine
from .errors import OutputFolderError, StoreError
from .folders import CARD, Progress, no_progress, remove_stale_temporaries
from .planning import Changes, Shards, digest_of_names, make_plan, nothing_to_do, pending_inputs, survey
from .processes import BATCH
from .storage import Folder, open_folder, read_folder_card, writing
from .storage.folder import file_digest_in, write_folder_card, writing_file
from .storage.lease import LEASE
from .store import (
    CLIP_SCHEMA,
    CLIPS,
    KIND,
    PARTS,
    SKIPPED,
    SKIPPED_SCHEMA,
    DescriptorStore,
    Part,
    checked_table,
    damaged,
    digest_in,
    list_parts,
    open_store,
    part_order,
    read_part,
    read_parts,
    write_part,
)

log = logging.getLogger(__name__)

PART_INPUTS = 256  # a kill loses at most this many clips' work
PART_WINDOWS = 4096  # ... or this many vectors: a shard of hour-long recordings must not fill the memory
PADDING_WARNING = 0.25


def index(
    corpus: Corpus,
    store: str | Path,
    *,
    descriptor: Descriptor,
    engine: Engine = HERE,
    dtype: str | None = None,
    retry_skipped: bool = False,
    keep_vanished: bool = True,
    repair: bool = False,
    progress: Progress = no_progress,
    planned: Callable[[Changes], object] | None = None,
) -> DescriptorStore:
    """Describe a corpus into a store, or bring an existing store up to date.

    Only new and changed clips are described (a file has changed when its path, size, modification time, caption or
    stretch has); clips whose file has vanished are kept and counted in the card.

    Parameters
    ----------
    corpus
        The source; see ``auscult.corpus.open_corpus``.
    store
        Folder of the store, a local path or a URL; created if it does not exist.
    descriptor
        What to compute.
    engine
        Where the work is done. With more than one worker, a script must guard its entry by ``if __name__ == "__main__"``.
    dtype
        How vectors are kept on disk: None for the descriptor's own way, or ``"float16"`` to halve float32.
    retry_skipped
        Try again what could not be read last time.
    keep_vanished
        Keep the descriptors of clips that are no longer in the source.
    repair
        Check the digest of every shard first; remove those that are damaged, and describe their inputs again.
    progress
        Called with (clips done, clips to do, what).
    planned
        Called with what has changed since the last run, before anything is described.

    Raises
    ------
    OutputFolderError
        The folder holds something else.
    DescriptorMismatchError
        The store was made with another descriptor.
    CorpusError
        The source as a whole cannot be read.
    StoreError
        Another process is writing to the store, or a shard of it is damaged.
    StorageError
        A place denies, cannot be reached, or is full.
    """
    if dtype not in {None, descriptor.dtype} and (dtype, descriptor.dtype) != ("float16", "float32"):
        raise ValueError(f"dtype should be {descriptor.dtype} for {descriptor.spec}, or float16 for float32; got {dtype!r}")
    dtype = dtype or descriptor.dtype
    folder = open_folder(store)
    _check_folder(folder)
    shards = Shards() if repair else survey(folder, descriptor, dtype)
    plan = None if repair else make_plan(corpus, shards.known, retry_skipped)
    if plan is not None and nothing_to_do(folder, plan, shards, keep_vanished):
        if planned is not None:
            planned(plan.changes)
        return open_store(folder)
    _make(folder)
    with writing(folder) as still_ours:
        removed = _remove_damaged(folder) if repair else ()
        if plan is None or list_parts(folder) != shards.names:  # another process was writing until now
            shards = survey(folder, descriptor, dtype)
            plan = make_plan(corpus, shards.known, retry_skipped)
        if planned is not None:
            planned(replace(plan.changes, repaired=removed))
        if nothing_to_do(folder, plan, shards, keep_vanished):
            return open_store(folder)
        folder.delete(CARD)  # until it is back, the store counts as incomplete
        for name in shards.superseded:
            folder.delete(f"{PARTS}/{name}")
        pending = pending_inputs(corpus, shards.known, retry_skipped)
        progress(0, plan.todo, "described")
        where = engine if plan.todo >= 4 * BATCH else HERE
        _write_parts(folder, pending, shards, descriptor, where, dtype, plan.todo, progress, still_ours)
        vanished = plan.vanished(shards.known, keep_vanished)
        _drop_rows(folder, shards, plan.gone - set(vanished), descriptor, still_ours)
        _finish(folder, corpus, descriptor, dtype, vanished, still_ours)
    return open_store(folder)


def _check_folder(folder: Folder) -> None:
    """Refuse a folder that is no store."""
    if isinstance(folder.place, Path) and folder.place.exists() and not folder.place.is_dir():
        raise OutputFolderError(f"{folder.place}: holds something that is not a descriptor store; choose another -o")
    names = {entry.name for entry in folder.list()} - {LEASE, CLIPS, SKIPPED}
    if isinstance(folder.place, Path) and not names and folder.place.is_dir():
        names = {path.name for path in folder.place.iterdir()} - {CLIPS, SKIPPED}  # hidden files are somebody's, too
    # at a URL the last shard takes its folder along
    if names and PARTS not in names and not (CARD in names and read_folder_card(folder)["kind"] == KIND):
        raise OutputFolderError(f"{folder.place}: holds something that is not a descriptor store; choose another -o")


def _make(folder: Folder) -> None:
    try:
        folder.below(PARTS).make()
    except OSError as error:
        raise OutputFolderError(f"{folder.place}: cannot be made ({error.strerror})") from error
    if isinstance(folder.place, Path):
        for place in (folder.place, folder.place / PARTS):
            remove_stale_temporaries(place)


def _remove_damaged(folder: Folder) -> tuple[str, ...]:
    """Delete the shards whose bytes are not those that were written, and return their names."""
    problems = damaged(folder, {f"{PARTS}/{name}": digest_in(name) for name in list_parts(folder)})
    if problems:
        folder.delete(CARD)  # first: with it, a store would count as whole without them
    for name, problem in problems.items():
        log.warning("%s: %s: %s; its inputs are described again", folder.place, name, problem)
        folder.delete(name)
    return tuple(problems)


# --- describing -----------------------------------------------------------------------------------------------------


def _write_parts(
    folder: Folder,
    pending: Iterator[tuple[Clip | Skipped, str, str]],
    shards: Shards,
    descriptor: Descriptor,
    engine: Engine,
    dtype: str,
    todo: int,
    progress: Progress,
    still_ours: Callable[[], None],
) -> None:
    numbers = {part_order(name).number for name in shards.names}
    following = itertools.count(1 + max(numbers, default=-1))
    gaps = sorted(set(range(max(numbers, default=0))) - numbers)
    results = describe_all(pending, descriptor, engine)
    done = 0
    while True:
        part, owners, starts, vectors, n_windows = Part([], []), [], [], [], 0
        for described in results:
            (part.skipped if described.skipped else part.clips).append(described.row)
            owners += [described.row["clip_id"]] * len(described.starts)
            starts += described.starts
            vectors.append(described.vectors.astype(dtype, copy=False))
            n_windows += len(described.starts)
            done += 1
            progress(done, todo, "described")
            if len(part.clips) + len(part.skipped) >= PART_INPUTS or n_windows >= PART_WINDOWS:
                break
        if not part.clips and not part.skipped:
            return
        matrix = np.concatenate(vectors) if vectors else np.zeros((0, descriptor.dimension), dtype)
        # A shard that was lost is made anew in its place, so that a mended store is equal to one that was never damaged.
        # But what supersedes rows of other shards has to come after them.
        superseding = any(row["key"] in shards.known for row in (*part.clips, *part.skipped))
        number = gaps.pop(0) if gaps and not superseding else next(following)
        still_ours()
        write_part(folder, number, part, owners, starts, matrix, descriptor.spec)
        shards.wrote(number, part)


# --- finishing ------------------------------------------------------------------------------------------------------


def _drop_rows(folder: Folder, shards: Shards, gone: set[str], descriptor: Descriptor, still_ours: Callable[[], None]) -> None:
    """Rewrite the shards that hold rows which a later shard answers for (a file that changed), or which are ``gone``."""
    stale = shards.stale | {shards.known[key].number for key in gone}
    for name in list_parts(folder) if stale else ():
        number = part_order(name).number
        if number not in stale:
            continue
        part = read_part(folder, name)
        clips, skipped = (
            [row for row in rows if row["key"] not in gone and shards.answers(number, row["key"])]
            for rows in (part.clips, part.skipped)
        )
        still_ours()
        if clips or skipped:
            _rewrite(folder, name, Part(clips, skipped), descriptor)
        folder.delete(f"{PARTS}/{name}")


def _rewrite(folder: Folder, name: str, part: Part, descriptor: Descriptor) -> None:
    """Write the shard anew with the vectors of the rows in ``part`` only."""
    table = checked_table(folder, f"{PARTS}/{name}", digest_in(name))
    wanted = {row["clip_id"] for row in part.clips}
    owners = table["clip_id"].to_pylist()
    rows = [number for number, owner in enumerate(owners) if owner in wanted]
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(owners), descriptor.dimension)[rows]
    starts = table["start_s"].to_numpy()[rows].tolist()
    number = part_order(name).number
    write_part(folder, number, part, [owners[row] for row in rows], starts, vectors, descriptor.spec)


def _finish(
    folder: Folder,
    corpus: Corpus,
    descriptor: Descriptor,
    dtype: str,
    vanished: list[str],
    still_ours: Callable[[], None],
) -> None:
    """Gather the shards' rows into the tables, then write the card that declares the store whole."""
    durations: list[float] = []
    counts = {"clips": 0, "windows": 0, "skipped": 0, "not_audio": 0, "vanished": len(vanished)}
    flags: dict[str, int] = {}
    padding_s = 0.0
    content: list[str] = []
    parts: dict[str, int] = {}
    still_ours()
    names = list_parts(folder)
    if len({part_order(name).number for name in names}) < len(names):
        raise StoreError(  # an upload of a writer that was taken for dead came in after that of its successor
            f"{folder.place}: another process has written shards of the same numbers; give the same command again, "
            "which keeps one of each"
        )
    with (
        writing_file(folder, CLIPS) as clips_file,
        writing_file(folder, SKIPPED) as skipped_file,
        pq.ParquetWriter(clips_file, CLIP_SCHEMA, compression="zstd") as clips,
        pq.ParquetWriter(skipped_file, SKIPPED_SCHEMA, compression="zstd") as skipped,
    ):
        for name, part in read_parts(folder, names):
            parts[name] = sum(row["n_windows"] for row in part.clips)
            clips.write_table(pa.Table.from_pylist(part.clips, CLIP_SCHEMA))
            skipped.write_table(pa.Table.from_pylist(part.skipped, SKIPPED_SCHEMA))
            counts["clips"] += len(part.clips)
            counts["not_audio"] += sum(row["kind"] == "not_audio" for row in part.skipped)
            counts["skipped"] += sum(row["kind"] != "not_audio" for row in part.skipped)
            counts["windows"] += parts[name]
            for row in part.clips:
                padding_s += row["padding_s"]
                durations.append(row["duration_s"])
                content.append(
                    hashlib.sha256(
                        f"{row['clip_id']}\0{row['sha256']}\0{row['start_s']}\0{row['duration_s']}".encode()
                    ).hexdigest()
                )
                for flag in row["flags"]:
                    flags[flag] = flags.get(flag, 0) + 1
    window_s = descriptor.window_samples / descriptor.sample_rate_hz
    padding_share = round(padding_s / (counts["windows"] * window_s), 4) if counts["windows"] else 0.0
    if descriptor.tail != "move":
        padding_share = 0.0  # padding is not compared
    still_ours()
    write_folder_card(
        folder,
        KIND,
        {
            "spec": str(descriptor.spec),
            "dimension": descriptor.dimension,
            "dtype": dtype,
            "window_s": window_s,
            "source": [printable(source) for source in corpus.sources],
            "counts": counts,
            "flags": dict(sorted(flags.items())),
            "audio_s": round(sum(durations), 3),
            "padding_share": padding_share,
            "vanished": [key.partition(":")[2] for key in vanished[:100]],
            "vanished_sha256": digest_of_names(vanished),
            "warnings": _warnings(padding_share, window_s, durations, vanished),
            "content_sha256": digest_of_names(sorted(content)),  # whatever the order in which the clips came in
            "tables": {name: file_digest_in(folder, name) for name in (CLIPS, SKIPPED)},
            "parts": parts,
        },
    )


def _warnings(padding_share: float, window_s: float, durations: list[float], vanished: list[str]) -> list[str]:
    warnings = []
    if padding_share > PADDING_WARNING:
        warnings.append(padding_warning(f"{padding_share:.0%} of what was described", window_s, durations))
    if vanished:
        some = "1 clip of the store is" if len(vanished) == 1 else f"{len(vanished):,} clips of the store are"
        warnings.append(f"{some} no longer in the source; descriptors are kept")
    return warnings


def padding_warning(what: str, window_s: float, durations: Iterable[float]) -> str:
    """That ``what`` is padding, and the window that would suit clips of these ``durations`` (s)."""
    better = float(np.median([duration for duration in durations if duration < window_s]))
    return (
        f"{what} is padding: most clips are shorter than the window of {window_s:g} s. "
        f"Padding looks alike in every clip and blurs the comparison; describe with --duration {max(better, 0.1):.3g}"
    )
