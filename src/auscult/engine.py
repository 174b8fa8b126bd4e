"""How and where work is done: processes, memory, device, cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

from .cluster import connect, map_in_tasks
from .devices import CPU, check_name, torch_device

Job = TypeVar("Job")
Result = TypeVar("Result")

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Engine:
    """Where the work is done. Results do not depend on it, but for those of an approximate search, whose indexes are of blocks
    that are cut to fit the memory.

    Attributes
    ----------
    workers
        Processes that describe clips, and threads that align them.
    memory_bytes
        What the vectors that a search holds at once may take.
    device
        Of models and of the search: ``cpu``, ``cuda`` or ``cuda:N``.
    ray
        Address of a Ray cluster, ``local`` to start one here, or None for this machine without Ray.
    scratch
        Folder where searches that take long keep what they have found so far, to go on from there; None: nowhere. It belongs
        to one task on one set of inputs.
    """

    workers: int = 1
    memory_bytes: int = 4 * GIB
    device: str = "cpu"
    ray: str | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.device)
        if self.workers < 1:
            raise ValueError(f"workers should be at least 1, got {self.workers}")
        if self.memory_bytes < MIB:
            raise ValueError(f"memory should be at least 1 MB, got {self.memory_bytes:,} bytes")

    @property
    def local(self) -> Engine:
        """The same without the cluster, for what is too little to be sent to one; nothing of it is kept."""
        return replace(self, ray=None, scratch=None)

    @property
    def resident_bytes(self) -> int:
        """What a store may take to be held in memory as a whole: a quarter, as there may be four; on a cluster nothing, since
        workers read for themselves."""
        return self.memory_bytes // 4 if self.ray is None else 0

    def check(self) -> None:
        """See that the device is there and the cluster answers; otherwise that shows when they are needed first.

        Raises
        ------
        ValueError, ClusterError, MissingExtraError
            They are not.
        """
        if self.ray is not None:
            connect(self.ray, self.workers)
        elif self.device != CPU:
            torch_device(self.device, f"work on {self.device}")

    def scratch_file(self, name: str | None) -> Path | None:
        """Where the search of this name keeps its state; None if it is to keep none."""
        return None if self.scratch is None or name is None else self.scratch / f"{name}.npz"

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job], *, threads: int | None = None) -> Iterator[Result]:
        """Results of ``function`` in the order of ``jobs``, which are taken as they are needed.

        Parameters
        ----------
        threads
            On this machine: how many jobs run at once, each with one thread of its own, so that the last bits of a product
            do not depend on their number. None: one job at a time with all cores, as a large matrix product wants it. On a
            cluster a job always has one CPU and one thread.

        Raises
        ------
        ClusterError
            The cluster cannot be reached, or lost what cannot be replaced.
        MissingExtraError
            Ray is not installed.
        """
        if self.ray is not None:
            yield from map_in_tasks(connect(self.ray, self.workers), function, jobs)
            return
        if threads is None:
            yield from map(function, jobs)
            return
        with ThreadPoolExecutor(threads) as pool, threadpool_limits(1):
            waiting: deque[Future[Result]] = deque()
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


HERE = Engine()
