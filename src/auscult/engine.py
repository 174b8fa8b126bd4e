"""How and where work is done: processes, memory, device. Nothing here changes a result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from threadpoolctl import threadpool_limits

from .cluster import connect, map_in_tasks

Job = TypeVar("Job")
Result = TypeVar("Result")

MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Engine:
    """Where the work is done. Results do not depend on it.

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
        if self.workers < 1:
            raise ValueError(f"workers should be at least 1, got {self.workers}")
        if self.memory_bytes < MIB:
            raise ValueError(f"memory should be at least 1 MB, got {self.memory_bytes:,} bytes")

    @property
    def resident_bytes(self) -> int:
        """What is held in memory as a whole: half of the memory; on a cluster nothing, as workers read for themselves."""
        return self.memory_bytes // 2 if self.ray is None else 0

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
