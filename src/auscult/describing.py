"""Describe clips: in this process, or in several with one thread each; in the order of the input whatever happens."""

from __future__ import annotations

import ctypes
import itertools
import logging
import multiprocessing
import os
import platform
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .audio import SILENT_PEAK, AudioStream, Window, cut_windows
from .cluster import connect, map_in_actors
from .corpus import Clip, Skipped
from .corpus.archive import container
from .descriptors import Descriptor, load_descriptor, on_device
from .engine import Engine
from .errors import AudioDecodeError, CorpusError

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
BATCH = 8  # clips sent to a worker at once


@dataclass(frozen=True)
class Described:
    """What a worker returns for one input: its row (a clip's or a skip's), and its vectors."""

    row: dict[str, Any]
    skipped: bool
    starts: list[float]
    vectors: npt.NDArray[Any]


Item = tuple[Clip | Skipped, str, str]
_worker_descriptor: Descriptor | None = None  # one a process: loaded once, by the initializer


def describe_all(pending: Iterator[Item], descriptor: Descriptor, engine: Engine) -> Iterator[Described]:
    """Describe in the order of the input; with workers, a bounded number of batches is under way.

    Raises
    ------
    CorpusError
        A node of the cluster does not see the files.
    ClusterError
        The cluster cannot be reached, or cannot start what describes.
    """
    if engine.ray is not None:
        yield from _describe_on_cluster(pending, descriptor, engine)
        return
    descriptor = on_device(descriptor, engine.device)
    workers = engine.workers
    if workers == 1:
        for item in pending:
            yield describe_item(item, descriptor)
        return
    batches = iter(lambda: list(itertools.islice(pending, BATCH)), [])
    queue: deque[tuple[list[Item], Future[list[Described]]]] = deque()
    pool = _start_pool(descriptor, workers, engine.device)
    try:
        while True:
            for batch in itertools.islice(batches, 4 * workers - len(queue)):
                queue.append((batch, _submit(pool, batch)))
            if not queue:
                return
            batch, future = queue.popleft()
            try:
                yield from future.result()
            except BrokenProcessPool:
                # A decoder that crashes takes its process along, and every batch under way with it. Find the culprit by
                # giving this batch, item by item, to a process of its own, then send the other batches again.
                yield from _describe_isolated(batch, descriptor, engine.device)
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _start_pool(descriptor, workers, engine.device)
                queue = deque((other, _submit(pool, other)) for other, _ in queue)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, batch: list[Item]) -> Future[list[Described]]:
    """Submit a batch; that the pool is broken shows when the result is asked for, never here."""
    try:
        return pool.submit(_describe_batch, batch)
    except BrokenProcessPool as error:
        failed: Future[list[Described]] = Future()
        failed.set_exception(error)
        return failed


def _start_pool(descriptor: Descriptor, workers: int, device: str) -> ProcessPoolExecutor:
    # spawn: fork copies locks that other threads of this process may hold
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(str(descriptor.spec), device))
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


def _start_worker(spec: str, device: str) -> None:
    global _worker_descriptor
    threadpool_limits(1)  # as many processes as cores: a second thread in each would only get in the way
    _keep_freed_memory()
    _worker_descriptor = on_device(load_descriptor(spec), device)


def _keep_freed_memory() -> None:
    """Tell glibc not to hand the buffers of each clip back to the kernel, only to fault them in again for the next: a tenth
    of the time for a FLAC. Elsewhere than on glibc, nothing is done."""
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 1 << 29)


def _describe_batch(batch: list[Item]) -> list[Described]:
    assert _worker_descriptor is not None
    return [describe_item(item, _worker_descriptor) for item in batch]


def _describe_isolated(batch: list[Item], descriptor: Descriptor, device: str) -> Iterator[Described]:
    pool = _start_pool(descriptor, 1, device)
    try:
        for item in batch:
            try:
                yield from pool.submit(_describe_batch, [item]).result()
            except BrokenProcessPool:
                yield _crashed(item, descriptor)
                pool.shutdown()
                pool = _start_pool(descriptor, 1, device)
    finally:
        pool.shutdown()


def _crashed(item: Item, descriptor: Descriptor) -> Described:
    log.warning("%s: the decoder crashed", item[0].path)
    return _skip(item, "the decoder crashed on this file", descriptor)


# --- on a cluster ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Actor:
    """What a cluster sends to its workers: how to load the descriptor, and the description of a batch."""

    spec: str
    device: str

    def __call__(self) -> Callable[[list[Item]], _Answer]:
        _start_worker(self.spec, self.device)
        return _answered


@dataclass(frozen=True)
class _Answer:
    """A described batch, and which of its files were not there, on which node."""

    described: list[Described]
    missing: list[str]
    node: str


def _answered(batch: list[Item]) -> _Answer:
    described = _describe_batch(batch)
    unread = [item.path for (item, _, _), one in zip(batch, described, strict=True) if one.skipped and isinstance(item, Clip)]
    return _Answer(described, [path for path in unread if not os.path.exists(container(path))], platform.node())


def _describe_on_cluster(pending: Iterator[Item], descriptor: Descriptor, engine: Engine) -> Iterator[Described]:
    assert engine.ray is not None
    gpus = engine.device.startswith("cuda") and hasattr(descriptor, "on")
    answers = map_in_actors(
        connect(engine.ray, engine.workers),
        _Actor(str(descriptor.spec), "cuda" if gpus else "cpu"),  # an actor sees one GPU, whatever its number on the node
        iter(lambda: list(itertools.islice(pending, BATCH)), []),
        split=lambda batch: [[item] for item in batch],
        crashed=lambda batch: _Answer([_crashed(item, descriptor) for item in batch], [], ""),
        gpus=gpus,
    )
    for answer in answers:
        for path in answer.missing:
            if os.path.exists(container(path)):
                raise CorpusError(
                    f"{path}: is on this machine, but node {answer.node} does not see it; "
                    "put the corpus where all nodes see it under the same path"
                )
        yield from answer.described


def describe_item(entry: Item, descriptor: Descriptor) -> Described:
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
    vectors = [np.zeros((0, descriptor.dimension), descriptor.dtype)]
    padding = 0
    windows = cut_windows(
        iter(stream),
        window_samples=descriptor.window_samples,
        sample_rate_hz=descriptor.sample_rate_hz,
        tail=descriptor.tail,
    )
    try:
        for batch in iter(lambda: list(itertools.islice(windows, 16)), []):
            sounding = [window for window in batch if _is_sounding(window)]
            if sounding:
                starts += [window.start_s for window in sounding]
                vectors.append(descriptor.describe(np.stack([window.samples for window in sounding])))
            if descriptor.tail == "move":  # where the tail is padded, it is not compared
                padding += sum(descriptor.window_samples - window.valid for window in sounding)
    except AudioDecodeError as error:
        return _skip(entry, str(error), descriptor)
    facts = stream.facts
    assert facts is not None
    flags = list(facts.flags)
    if not starts and "silent" not in flags:  # its channels cancel out, or it is shorter than a sample at our rate
        flags.append("silent")
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
        "flags": flags,
        "n_windows": len(starts),
        "padding_s": padding / descriptor.sample_rate_hz,
        "key": key,
        "state": state,
    }
    return Described(row, False, starts, np.concatenate(vectors))


def _is_sounding(window: Window) -> bool:
    """Silence has no spectrum to compare, so a silent window gets no vector and can match nothing."""
    return bool(np.abs(window.samples).max() >= SILENT_PEAK)


def _skip(entry: Item, reason: str, descriptor: Descriptor, kind: str = "unreadable") -> Described:
    item, key, state = entry
    row = {"path": item.path, "reason": reason, "kind": kind, "clip_id": item.clip_id, "key": key, "state": state}
    return Described(row, True, [], np.zeros((0, descriptor.dimension), descriptor.dtype))
