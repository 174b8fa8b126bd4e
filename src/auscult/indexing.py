"""Describe a corpus into a store: in several processes, resumable after any kill, and incremental.

Data flow: corpus -> (clip) -> worker: decode, cut, describe -> (rows, vectors) -> shard of 256 inputs -> disk.
The shards follow the order of the corpus, whatever the number of workers, so a run that was killed and continued writes
the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import Clip, Corpus, Skipped
from .corpus.archive import container
from .corpus.folder import printable
from .describing import BATCH, describe_all
from .descriptors import Descriptor
from .engine import HERE, Engine
from .errors import DescriptorMismatchError, OutputFolderError
from .folders import (
    CARD,
    Progress,
    atomic_file,
    damaged_files,
    file_digests,
    locked,
    no_progress,
    remove_stale_temporaries,
    write_card,
)
from .store import (
    CLIP_SCHEMA,
    CLIPS,
    KIND,
    PARTS,
    SKIPPED,
    SKIPPED_SCHEMA,
    DescriptorStore,
    Part,
    read_part,
    write_part,
)

log = logging.getLogger(__name__)

PART_INPUTS = 256  # a kill loses at most this many clips' work
PART_WINDOWS = 4096  # ... or this many vectors: a shard of hour-long recordings must not fill the memory
PADDING_WARNING = 0.25


@dataclass(frozen=True)
class Changes:
    """What a run has before it: clips that are new, have changed, are tried again or are as they were, and that vanished."""

    new: int
    changed: int
    retried: int
    unchanged: int
    vanished: int

    @property
    def first_run(self) -> bool:
        """Nothing was known before."""
        return not (self.changed or self.retried or self.unchanged or self.vanished)


def index(
    corpus: Corpus,
    store: str | Path,
    *,
    descriptor: Descriptor,
    engine: Engine = HERE,
    dtype: str | None = None,
    retry_skipped: bool = False,
    keep_vanished: bool = True,
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
        Folder of the store; created if it does not exist.
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
        Another process is writing to the store.
    """
    if dtype not in {None, descriptor.dtype} and (dtype, descriptor.dtype) != ("float16", "float32"):
        raise ValueError(f"dtype should be {descriptor.dtype} for {descriptor.spec}, or float16 for float32; got {dtype!r}")
    dtype = dtype or descriptor.dtype
    folder = Path(os.path.abspath(store))
    _check_folder(folder, descriptor, dtype)
    known = _known_states(folder) if (folder / PARTS).is_dir() else {}
    todo, gone, changes = _plan(corpus, known, retry_skipped)
    if planned is not None:
        planned(changes)
    vanished = sorted(key for key in gone if keep_vanished and not known[key].skipped)
    if todo == 0 and _is_up_to_date(folder, gone, vanished):
        return DescriptorStore.open(folder)
    try:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFolderError(f"{folder}: cannot be made ({error.strerror})") from error
    with locked(folder):
        remove_stale_temporaries(folder)
        remove_stale_temporaries(folder / PARTS)
        (folder / CARD).unlink(missing_ok=True)  # until it is back, the store counts as incomplete
        pending = _pending(corpus, known, retry_skipped)
        progress(0, todo, "described")
        _write_parts(folder, pending, descriptor, engine if todo >= 4 * BATCH else HERE, dtype, todo, progress)
        _drop_rows(folder, gone - set(vanished), descriptor)
        _finish(folder, corpus, descriptor, dtype, vanished)
    return DescriptorStore.open(folder)


def _check_folder(folder: Path, descriptor: Descriptor, dtype: str) -> None:
    """Refuse a folder that is no store, or whose shards were made with other settings."""
    if not (folder / PARTS).is_dir():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputFolderError(f"{folder}: holds something that is not a descriptor store; choose another -o")
        return
    for path in _part_paths(folder)[:1]:
        part = read_part(path)
        if (part.spec, part.dtype) != (str(descriptor.spec), dtype):
            raise DescriptorMismatchError(
                f"{folder}: described with {part.spec} in {part.dtype}, asked for {descriptor.spec} in {dtype}; "
                "choose another -o, or the same settings"
            )


def _is_up_to_date(folder: Path, gone: set[str], vanished: list[str]) -> bool:
    """Whether the store is whole, undamaged in its tables, and already says what has vanished."""
    if not (folder / CARD).exists() or len(gone) > len(vanished):
        return False
    card = DescriptorStore.open(folder).card
    return card["vanished_sha256"] == _digest_of(vanished) and not damaged_files(folder, card["tables"])


def _digest_of(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _part_paths(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("part-*.parquet"))


class _Known(NamedTuple):
    """What a finished shard says of an input: its state then, and whether it was skipped."""

    state: str
    skipped: bool


def _known_states(folder: Path) -> dict[str, _Known]:
    """By key, everything that finished shards answer for; later shards supersede earlier ones."""
    known = {}
    for path in _part_paths(folder):
        part = read_part(path)
        known.update({row["key"]: _Known(row["state"], False) for row in part.clips})
        known.update({row["key"]: _Known(row["state"], True) for row in part.skipped})
    return known


def _key(item: Clip | Skipped) -> str:
    """Names an input within its corpus."""
    return f"clip:{item.clip_id}" if isinstance(item, Clip) else f"skipped:{item.path}:{item.reason}"


def _state(item: Clip | Skipped) -> str:
    """A digest that changes when the input does."""
    if isinstance(item, Skipped):
        facts: list[Any] = [item.path, item.reason, item.kind]
    else:
        try:
            status = os.stat(container(item.path))
            seen: list[int] | None = [status.st_size, status.st_mtime_ns]
        except OSError:
            seen = None  # missing, or not a file (hf:...)
        facts = [item.path, item.start_s, item.duration_s, item.caption, item.labels, seen]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _pending(
    corpus: Iterable[Clip | Skipped], known: dict[str, _Known], retry_skipped: bool
) -> Iterator[tuple[Clip | Skipped, str, str]]:
    """What is new or has changed, as (item, key, state), in the order of the corpus."""
    for item in corpus:
        key, state = _key(item), _state(item)
        before = known.get(key)
        if before is None or before.state != state or (retry_skipped and before.skipped):
            yield item, key, state


def _plan(corpus: Corpus, known: dict[str, _Known], retry_skipped: bool) -> tuple[int, set[str], Changes]:
    """How many inputs are to be described, the keys of the store that are no longer in the source, and both in words."""
    gone = set(known)
    seen = {True: 0, False: 0}  # clips, and what is none

    def noted() -> Iterator[Clip | Skipped]:
        for item in corpus:
            seen[isinstance(item, Clip)] += 1
            gone.discard(_key(item))
            yield item

    if not known:
        return sum(1 for _ in noted()), gone, Changes(seen[True], 0, 0, 0, 0)
    todo, new, changed, retried = 0, 0, 0, 0
    for item, key, state in _pending(noted(), known, retry_skipped):
        todo += 1
        if isinstance(item, Clip):
            before = known.get(key)
            new += before is None
            changed += before is not None and before.state != state
            retried += before is not None and before.state == state
    vanished = sum(key.startswith("clip:") and not known[key].skipped for key in gone)
    return todo, gone, Changes(new, changed, retried, seen[True] - new - changed - retried, vanished)


def _write_parts(
    folder: Path,
    pending: Iterator[tuple[Clip | Skipped, str, str]],
    descriptor: Descriptor,
    engine: Engine,
    dtype: str,
    todo: int,
    progress: Progress,
) -> None:
    paths = _part_paths(folder)
    number = 1 + int(paths[-1].stem.removeprefix("part-")) if paths else 0
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
        write_part(folder / PARTS / f"part-{number:05d}.parquet", part, owners, starts, matrix, descriptor.spec)
        number += 1


# --- finishing ------------------------------------------------------------------------------------------------------


def _drop_rows(folder: Path, gone: set[str], descriptor: Descriptor) -> None:
    """Rewrite the shards that hold rows which a later shard answers for (a file that changed), or which are ``gone``."""
    newest = {}
    for path in _part_paths(folder):
        part = read_part(path)
        newest.update({row["key"]: path for row in (*part.clips, *part.skipped) if row["key"] not in gone})
    for path in _part_paths(folder):
        part = read_part(path)
        clips, skipped = ([row for row in rows if newest.get(row["key"]) == path] for rows in (part.clips, part.skipped))
        if len(clips) == len(part.clips) and len(skipped) == len(part.skipped):
            continue
        if not clips and not skipped:
            path.unlink()
            continue
        table = pq.read_table(path)
        wanted = {row["clip_id"] for row in clips}
        owners = table["clip_id"].to_pylist()
        rows = [number for number, owner in enumerate(owners) if owner in wanted]
        column = table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(owners), descriptor.dimension)[rows]
        starts = table["start_s"].to_numpy()[rows].tolist()
        write_part(path, Part(clips, skipped), [owners[row] for row in rows], starts, vectors, descriptor.spec)


def _finish(folder: Path, corpus: Corpus, descriptor: Descriptor, dtype: str, vanished: list[str]) -> None:
    """Gather the shards' rows into the tables, then write the card that declares the store whole."""
    durations: list[float] = []
    counts = {"clips": 0, "windows": 0, "skipped": 0, "not_audio": 0, "vanished": len(vanished)}
    flags: dict[str, int] = {}
    padding_s = 0.0
    content: list[str] = []
    with (
        atomic_file(folder / CLIPS) as clips_file,
        atomic_file(folder / SKIPPED) as skipped_file,
        pq.ParquetWriter(clips_file, CLIP_SCHEMA, compression="zstd") as clips,
        pq.ParquetWriter(skipped_file, SKIPPED_SCHEMA, compression="zstd") as skipped,
    ):
        for path in _part_paths(folder):
            part = read_part(path)
            clips.write_table(pa.Table.from_pylist(part.clips, CLIP_SCHEMA))
            skipped.write_table(pa.Table.from_pylist(part.skipped, SKIPPED_SCHEMA))
            counts["clips"] += len(part.clips)
            counts["not_audio"] += sum(row["kind"] == "not_audio" for row in part.skipped)
            counts["skipped"] += sum(row["kind"] != "not_audio" for row in part.skipped)
            for row in part.clips:
                counts["windows"] += row["n_windows"]
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
    write_card(
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
            "vanished_sha256": _digest_of(vanished),
            "warnings": _warnings(padding_share, window_s, durations, vanished),
            "content_sha256": _digest_of(sorted(content)),  # whatever the order in which the clips came in
            "tables": file_digests(folder, (CLIPS, SKIPPED)),
            "parts": file_digests(folder / PARTS, (path.name for path in _part_paths(folder))),
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
