"""Describe clips: in this process, or in several with one thread each; in the order of the input whatever happens."""

from __future__ import annotations

import ctypes
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .audio import SILENT_PEAK, AudioStream, Window, cut_windows
from .corpus import Clip, Skipped
from .descriptors import Descriptor, load_descriptor
from .engine import Engine
from .errors import AudioDecodeError

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
    """Describe in the order of the input; with workers, a bounded number of batches is under way."""
    workers = engine.workers
    if workers == 1:
        for item in pending:
            yield describe_item(item, descriptor)
        return
    batches = iter(lambda: list(itertools.islice(pending, BATCH)), [])
    queue: deque[tuple[list[Item], Future[list[Described]]]] = deque()
    pool = _start_pool(descriptor, workers)
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
                yield from _describe_isolated(batch, descriptor)
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _start_pool(descriptor, workers)
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
    _keep_freed_memory()
    _worker_descriptor = load_descriptor(spec)


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


def _describe_isolated(batch: list[Item], descriptor: Descriptor) -> Iterator[Described]:
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
