"""A function over items in several processes, each of which has loaded something once; results in the order of the items."""

from __future__ import annotations

import ctypes
import itertools
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
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from .cluster import connect, map_in_actors
from .engine import Engine
from .errors import CorpusError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
ENDED_S = 5.0  # for a killed process to be gone
BATCH = 8  # items sent to a worker at once

Item = TypeVar("Item")
Result = TypeVar("Result")


Load = Callable[[str], Callable[[Item], Result]]
"""Device -> what is done with an item. Picklable; called once a process."""

_worker_function: Callable[[Any], Any] | Exception | None = None  # one a process: loaded once, by the initializer


def map_in_processes(
    load: Load[Item, Result],
    items: Iterator[Item],
    engine: Engine,
    *,
    crashed: Callable[[Item], Result],
    unread: Callable[[Item, Result], str | None],
    gpus: bool = False,
) -> Iterator[Result]:
    """Results in the order of the items, from ``engine.workers`` processes of one thread each, or from a Ray cluster.

    A bounded number of batches of items is under way. An item that ends its process costs no other item. Ctrl-C is this
    process's to handle; workers ignore it.

    Parameters
    ----------
    load
        See :data:`Load`.
    items
        Picklable; taken as they are needed.
    engine
        Where. Processes are started even for one worker.
    crashed
        The result that stands for that of an item which ended its process.
    unread
        Item and result -> the file that could not be read, if one could not. Picklable; asked on a cluster, where a node may
        not see what this machine sees.
    gpus
        On a cluster: give a GPU to each process.

    Raises
    ------
    CorpusError
        A node of the cluster does not see the files.
    ClusterError
        The cluster cannot be reached, or cannot start what works.
    Exception
        What ``load`` or the function raises.
    """
    if engine.ray is not None:
        yield from _map_on_cluster(load, items, engine, crashed, unread, gpus)
        return
    workers = engine.workers
    batches = iter(lambda: list(itertools.islice(items, BATCH)), [])
    queue: deque[tuple[list[Item], Future[list[Result]]]] = deque()
    pool = _start_pool(load, workers, engine.device)
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
                yield from _map_isolated(load, batch, engine.device, crashed)
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _start_pool(load, workers, engine.device)
                queue = deque((other, _submit(pool, other)) for other, _ in queue)
    except BaseException:  # also where nobody wants the other results: what is under way is for nobody
        _end_pool(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, batch: list[Item]) -> Future[list[Any]]:
    """Submit a batch; that the pool is broken shows when the result is asked for, never here."""
    try:
        return pool.submit(_work_on, batch)
    except BrokenProcessPool as error:
        failed: Future[list[Any]] = Future()
        failed.set_exception(error)
        return failed


def _map_isolated(
    load: Load[Item, Result], batch: list[Item], device: str, crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    pool = _start_pool(load, 1, device)
    try:
        for item in batch:
            try:
                yield from pool.submit(_work_on, [item]).result()
            except BrokenProcessPool:
                yield crashed(item)
                pool.shutdown()
                pool = _start_pool(load, 1, device)
    except BaseException:
        _end_pool(pool)
        raise
    finally:
        pool.shutdown()


# --- processes --------------------------------------------------------------------------------------------------------


def _start_pool(load: Load[Any, Any], workers: int, device: str) -> ProcessPoolExecutor:
    # spawn: fork copies locks that other threads of this process may hold
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(load, device))
    with _interrupts_ignored():  # which the workers inherit: Ctrl-C is the parent's to handle
        for _ in range(workers):
            pool.submit(os.getpid)
    return pool


def _end_pool(pool: ProcessPoolExecutor) -> None:
    """Kill the processes of a pool: after Ctrl-C, a batch of theirs may take minutes that nobody will wait for.

    The pool is told by the end of its processes that it is broken. One that is killed while it writes a result leaves a part
    of it in the pipe; closed on this side, the pipe ends there, and the pool's thread does not wait for the rest.
    """
    processes = list((pool._processes or {}).values())
    for process in processes:
        process.kill()
    for process in processes:
        process.join(ENDED_S)
    results: Any = pool._result_queue
    with suppress(OSError, AttributeError):
        results._writer.close()


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


def _start_worker(load: Load[Any, Any], device: str) -> None:
    global _worker_function
    threadpool_limits(1)  # as many processes as cores: a second thread in each would only get in the way
    _keep_freed_memory()
    try:
        _worker_function = load(device)
    except Exception as error:  # noqa: BLE001  # told with the first batch; from here, the pool would only say that it broke
        _worker_function = error


def _keep_freed_memory() -> None:
    """Tell glibc not to hand the buffers of each clip back to the kernel, only to fault them in again for the next: a tenth
    of the time for a FLAC. Elsewhere than on glibc, nothing is done."""
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 1 << 29)


def _work_on(batch: list[Any]) -> list[Any]:
    if isinstance(_worker_function, Exception):
        raise _worker_function
    assert _worker_function is not None
    return [_worker_function(item) for item in batch]


# --- on a cluster -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """Results of a batch, and which of its files were not there, on which node."""

    results: list[Any]
    missing: list[str]
    node: str


@dataclass(frozen=True)
class _Actor:
    """What a cluster sends to its workers: how to load, and what to do with a batch."""

    load: Load[Any, Any]
    unread: Callable[[Any, Any], str | None]
    device: str

    def __call__(self) -> Callable[[list[Any]], _Answer]:
        _start_worker(self.load, self.device)
        return self.answered

    def answered(self, batch: list[Any]) -> _Answer:
        results = _work_on(batch)
        unread = [self.unread(item, result) for item, result in zip(batch, results, strict=True)]
        return _Answer(results, [path for path in unread if path is not None and not os.path.exists(path)], platform.node())


def _map_on_cluster(
    load: Load[Item, Result],
    items: Iterator[Item],
    engine: Engine,
    crashed: Callable[[Item], Result],
    unread: Callable[[Item, Result], str | None],
    gpus: bool,
) -> Iterator[Result]:
    assert engine.ray is not None
    answers = map_in_actors(
        connect(engine.ray, engine.workers),
        _Actor(load, unread, "cuda" if gpus else "cpu"),  # an actor sees one GPU, whatever its number on the node
        iter(lambda: list(itertools.islice(items, BATCH)), []),
        split=lambda batch: [[item] for item in batch],
        crashed=lambda batch: _Answer([crashed(item) for item in batch], [], ""),
        gpus=gpus,
    )
    for answer in answers:
        for path in answer.missing:
            if os.path.exists(path):
                raise CorpusError(
                    f"{path}: is on this machine, but node {answer.node} does not see it; "
                    "put the corpus where all nodes see it under the same path"
                )
        yield from answer.results
