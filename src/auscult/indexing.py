"""Describe a corpus into a store: in several processes, resumable after any kill, and incremental.

Data flow: corpus -> (clip) -> worker: decode, cut, describe -> (rows, vectors) -> shard of 256 inputs -> disk.
The shards follow the order of the corpus, whatever the number of workers, so a run that was killed and continued writes
the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from .audio import SILENT_PEAK, AudioStream, Window, cut_windows
from .corpus import Clip, Corpus, Skipped
from .corpus.archive import TAR_SEPARATOR
from .descriptors import Descriptor, load_descriptor
from .errors import AudioDecodeError, DescriptorMismatchError, OutputFolderError
from .folders import CARD, Progress, atomic_file, file_digest, locked, no_progress, remove_stale_temporaries, write_card
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
BATCH = 8  # clips sent to a worker at once
PADDING_WARNING = 0.25


@dataclass(frozen=True)
class _Described:
    """What a worker returns for one input: its row (a clip's or a skip's), and its vectors."""

    row: dict[str, Any]
    skipped: bool
    starts: list[float]
    vectors: npt.NDArray[np.float32]


def index(
    corpus: Corpus,
    store: str | Path,
    *,
    descriptor: Descriptor,
    workers: int = 1,
    dtype: str = "float32",
    retry_skipped: bool = False,
    progress: Progress = no_progress,
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
    workers
        Processes, one thread each. With more than one, a script must guard its entry by ``if __name__ == "__main__"``.
    dtype
        ``"float32"`` or ``"float16"``: how vectors are kept on disk.
    retry_skipped
        Try again what could not be read last time.
    progress
        Called with (clips done, clips to do, what).

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
    if dtype not in {"float16", "float32"}:
        raise ValueError(f"dtype should be float16 or float32, got {dtype!r}")
    if workers < 1:
        raise ValueError(f"workers should be at least 1, got {workers}")
    folder = Path(os.path.abspath(store))
    _check_folder(folder, descriptor)
    known = _known_states(folder) if (folder / PARTS).is_dir() else {}
    todo, vanished = _plan(corpus, known, retry_skipped)
    if todo == 0 and (folder / CARD).exists() and DescriptorStore.open(folder).card["counts"]["vanished"] == len(vanished):
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
        _write_parts(folder, pending, descriptor, workers if todo >= 4 * BATCH else 1, dtype, todo, progress)
        _drop_superseded(folder)
        _finish(folder, corpus, descriptor, dtype, vanished)
    return DescriptorStore.open(folder)


def _check_folder(folder: Path, descriptor: Descriptor) -> None:
    if (folder / CARD).exists():
        spec = DescriptorStore.open(folder).spec
        if spec != descriptor.spec:
            raise DescriptorMismatchError(
                f"{folder}: described with {spec}, asked for {descriptor.spec}; choose another -o, or the same settings"
            )
    elif folder.exists() and not (folder / PARTS).is_dir() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputFolderError(f"{folder}: holds something that is not a descriptor store; choose another -o")
    spec_file = next(iter(sorted((folder / PARTS).glob("*.parquet"))), None)
    if spec_file is not None and not (folder / CARD).exists():
        dimension = pq.read_schema(spec_file).field("vector").type.list_size
        if dimension != descriptor.dimension:
            raise DescriptorMismatchError(
                f"{folder}: an unfinished store with vectors of {dimension} values, asked for {descriptor.spec} with "
                f"{descriptor.dimension}; choose another -o, or the same settings"
            )


def _part_paths(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("part-*.parquet"))


def _known_states(folder: Path) -> dict[str, tuple[str, bool]]:
    """``{key: (state, skipped)}`` of everything that finished shards answer for; later shards supersede earlier ones."""
    known = {}
    for path in _part_paths(folder):
        part = read_part(path)
        known.update({row["key"]: (row["state"], False) for row in part.clips})
        known.update({row["key"]: (row["state"], True) for row in part.skipped})
    return known


def _key(item: Clip | Skipped) -> str:
    return f"path:{item.path}" if item.clip_id is None else f"id:{item.clip_id}"


def _state(item: Clip | Skipped) -> str:
    """A digest that changes when the input does."""
    if isinstance(item, Skipped):
        facts: list[Any] = [item.path, item.reason, item.kind]
    else:
        place = item.path.partition(TAR_SEPARATOR)[0]
        try:
            status = os.stat(place)
            seen: list[int] | None = [status.st_size, status.st_mtime_ns]
        except OSError:
            seen = None  # missing, or not a file (hf:...)
        facts = [item.path, item.start_s, item.duration_s, item.caption, item.labels, seen]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _pending(
    corpus: Iterable[Clip | Skipped], known: dict[str, tuple[str, bool]], retry_skipped: bool
) -> Iterator[tuple[Clip | Skipped, str, str]]:
    """What is new or has changed, as (item, key, state), in the order of the corpus."""
    for item in corpus:
        key, state = _key(item), _state(item)
        before = known.get(key)
        if before is None or before[0] != state or (retry_skipped and before[1]):
            yield item, key, state


def _plan(corpus: Corpus, known: dict[str, tuple[str, bool]], retry_skipped: bool) -> tuple[int, list[str]]:
    """How many inputs are to be described, and which clips of the store are no longer in the source."""
    if not known:
        return sum(1 for _ in corpus), []
    gone = set(known)

    def seen() -> Iterator[Clip | Skipped]:
        for item in corpus:
            gone.discard(_key(item))
            yield item

    todo = sum(1 for _ in _pending(seen(), known, retry_skipped))
    return todo, sorted(gone)


def _write_parts(
    folder: Path,
    pending: Iterator[tuple[Clip | Skipped, str, str]],
    descriptor: Descriptor,
    workers: int,
    dtype: str,
    todo: int,
    progress: Progress,
) -> None:
    paths = _part_paths(folder)
    number = 1 + int(paths[-1].stem.removeprefix("part-")) if paths else 0
    results = _describe_all(pending, descriptor, workers)
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
        write_part(folder / PARTS / f"part-{number:05d}.parquet", part, owners, starts, matrix)
        number += 1


# --- describing, in this process or in workers ---------------------------------------------------------------------

_Item = tuple[Clip | Skipped, str, str]
_worker_descriptor: Descriptor | None = None  # one a process: loaded once, by the initializer


def _describe_all(pending: Iterator[_Item], descriptor: Descriptor, workers: int) -> Iterator[_Described]:
    """Describe in the order of the input; with workers, a bounded number of batches is under way."""
    if workers == 1:
        for item in pending:
            yield _describe_item(item, descriptor)
        return
    batches = iter(lambda: list(itertools.islice(pending, BATCH)), [])
    queue: deque[tuple[list[_Item], Future[list[_Described]]]] = deque()
    pool = _start_pool(descriptor, workers)
    try:
        while True:
            for batch in itertools.islice(batches, 4 * workers - len(queue)):
                queue.append((batch, pool.submit(_describe_batch, batch)))
            if not queue:
                return
            batch, future = queue.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:
                # A decoder that crashes takes its process along, and every batch under way with it. Find the culprit by
                # giving this batch, item by item, to a process of its own, then send the other batches again.
                yield from _describe_isolated(batch, descriptor)
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _start_pool(descriptor, workers)
                queue = deque((other, pool.submit(_describe_batch, other)) for other, _ in queue)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_pool(descriptor: Descriptor, workers: int) -> ProcessPoolExecutor:
    # spawn: fork copies locks that other threads of this process may hold
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(str(descriptor.spec),))
    with _interrupts_ignored():  # which the workers inherit: Ctrl-C is the parent's to handle
        for _ in range(workers):
            pool.submit(os.getpid)
    return pool


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets SIGINT, and only it may change what happens then
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _start_worker(spec: str) -> None:
    global _worker_descriptor
    threadpool_limits(1)  # as many processes as cores: a second thread in each would only get in the way
    _worker_descriptor = load_descriptor(spec)


def _describe_batch(batch: list[_Item]) -> list[_Described]:
    assert _worker_descriptor is not None
    return [_describe_item(item, _worker_descriptor) for item in batch]


def _describe_isolated(batch: list[_Item], descriptor: Descriptor) -> Iterator[_Described]:
    pool = _start_pool(descriptor, 1)
    try:
        for item in batch:
            try:
                yield from pool.submit(_describe_batch, [item]).result()
            except BrokenProcessPool:
                log.warning("%s: the decoder crashed", item[0].path)
                yield _skip(item, "the decoder crashed on this file", descriptor)
                pool.shutdown()
                pool = _start_pool(descriptor, 1)
    finally:
        pool.shutdown()


def _describe_item(entry: _Item, descriptor: Descriptor) -> _Described:
    item, key, state = entry
    if isinstance(item, Skipped):
        return _skip(entry, item.reason, descriptor, item.kind)
    stream = AudioStream(
        item.path,
        sample_rate_hz=descriptor.sample_rate_hz,
        start_s=item.start_s,
        duration_s=item.duration_s,
        digest=True,
    )
    starts: list[float] = []
    vectors = [np.zeros((0, descriptor.dimension), np.float32)]
    padding = 0
    windows = cut_windows(iter(stream), window_samples=descriptor.window_samples, sample_rate_hz=descriptor.sample_rate_hz)
    try:
        for batch in iter(lambda: list(itertools.islice(windows, 16)), []):
            sounding = [window for window in batch if _is_sounding(window)]
            if sounding:
                starts += [window.start_s for window in sounding]
                vectors.append(descriptor.describe(np.stack([window.samples for window in sounding])))
            padding += sum(descriptor.window_samples - window.valid for window in sounding)
    except AudioDecodeError as error:
        return _skip(entry, str(error), descriptor)
    facts = stream.facts
    assert facts is not None
    row = {
        "clip_id": item.clip_id,
        "path": item.path,
        "start_s": item.start_s,
        "duration_s": facts.duration_s,
        "caption": item.caption,
        "labels": list(item.labels),
        "sha256": facts.sha256,
        "sample_digest": facts.sample_digest,
        "sample_rate_hz": facts.sample_rate_hz,
        "channels": facts.channels,
        "peak": facts.peak,
        "flags": list(facts.flags),
        "n_windows": len(starts),
        "padding_s": padding / descriptor.sample_rate_hz,
        "key": key,
        "state": state,
    }
    return _Described(row, False, starts, np.concatenate(vectors))


def _is_sounding(window: Window) -> bool:
    """Silence has no spectrum to compare, so a silent window gets no vector and can match nothing."""
    return bool(np.abs(window.samples).max() >= SILENT_PEAK)


def _skip(entry: _Item, reason: str, descriptor: Descriptor, kind: str = "unreadable") -> _Described:
    item, key, state = entry
    row = {"path": item.path, "reason": reason, "kind": kind, "clip_id": item.clip_id, "key": key, "state": state}
    return _Described(row, True, [], np.zeros((0, descriptor.dimension), np.float32))


# --- finishing ------------------------------------------------------------------------------------------------------


def _drop_superseded(folder: Path) -> None:
    """Rewrite shards whose rows a later shard answers for (a file that changed since)."""
    newest = {}
    for path in _part_paths(folder):
        part = read_part(path)
        newest.update({row["key"]: path for row in (*part.clips, *part.skipped)})
    for path in _part_paths(folder):
        part = read_part(path)
        kept = Part(*([row for row in rows if newest[row["key"]] == path] for rows in (part.clips, part.skipped)))
        if len(kept.clips) == len(part.clips) and len(kept.skipped) == len(part.skipped):
            continue
        if not kept.clips and not kept.skipped:
            path.unlink()
            continue
        table = pq.read_table(path)
        wanted = {row["clip_id"] for row in kept.clips}
        owners = table["clip_id"].to_pylist()
        rows = [number for number, owner in enumerate(owners) if owner in wanted]
        vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(owners), -1)[rows]
        write_part(path, kept, [owners[row] for row in rows], table["start_s"].to_numpy()[rows].tolist(), vectors)


def _finish(folder: Path, corpus: Corpus, descriptor: Descriptor, dtype: str, vanished: list[str]) -> None:
    """Gather the shards' rows into the tables, then write the card that declares the store whole."""
    durations: list[float] = []
    counts = {"clips": 0, "windows": 0, "skipped": 0, "not_audio": 0, "vanished": len(vanished)}
    flags: dict[str, int] = {}
    padding_s = 0.0
    content = hashlib.sha256()
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
                content.update(f"{row['clip_id']}\0{row['sha256']}\0{row['start_s']}\n".encode())
                for flag in row["flags"]:
                    flags[flag] = flags.get(flag, 0) + 1
    window_s = descriptor.window_samples / descriptor.sample_rate_hz
    padding_share = padding_s / (counts["windows"] * window_s) if counts["windows"] else 0.0
    write_card(
        folder,
        KIND,
        {
            "spec": str(descriptor.spec),
            "dimension": descriptor.dimension,
            "dtype": dtype,
            "window_s": window_s,
            "source": list(corpus.sources),
            "counts": counts,
            "flags": dict(sorted(flags.items())),
            "audio_s": round(sum(durations), 3),
            "padding_share": round(padding_share, 4),
            "vanished": [key.partition(":")[2] for key in vanished[:100]],
            "warnings": _warnings(padding_share, window_s, durations, vanished),
            "content_sha256": content.hexdigest(),
            "tables": {name: file_digest(folder / name) for name in (CLIPS, SKIPPED)},
            "parts": {path.name: file_digest(path) for path in _part_paths(folder)},
        },
    )


def _warnings(padding_share: float, window_s: float, durations: list[float], vanished: list[str]) -> list[str]:
    warnings = []
    if padding_share > PADDING_WARNING:
        better = float(np.median([duration for duration in durations if duration < window_s]))
        warnings.append(
            f"{padding_share:.0%} of what was described is padding: most clips are shorter than the window of {window_s:g} s. "
            f"Padding looks alike in every clip and blurs the comparison; describe with --duration {max(better, 0.1):.3g}"
        )
    if vanished:
        warnings.append(f"{len(vanished)} inputs of the store are no longer in the source; their descriptors are kept")
    return warnings
