"""Place jobs on the cluster, in tasks or in actors that hold something loaded, and give their results in order.

A job whose worker or node is lost is given to another. An error that the work itself raises is not tried again: it is
raised here as what it is.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ..errors import AuscultError, ClusterError
from .connection import Session

Job = TypeVar("Job")
Result = TypeVar("Result")

log = logging.getLogger(__name__)

AHEAD = 4  # jobs taken from the input for each CPU: one that takes long holds the results of this many others back
AT_ONCE = 2  # given to an actor, so that it need not wait for the driver
CRASHES = 8  # of worker processes on one job while their nodes lived on: then it is the job's doing
ALONE = 2  # of processes that did nothing else: one may have been on a node whose loss was noticed late
STARTS = 3  # times that all actors died before one was ready
PATIENCE_S = (0.0, 3.0, 10.0)  # before a task that lost its worker is tried again: Ray learns of a node's loss late
SIGN_S = 60  # for a sign of life from a node


def map_in_tasks(session: Session, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Results of ``function`` in the order of ``jobs``, each in a task with one CPU and one thread.

    Parameters
    ----------
    function
        Sent once, however large it is.
    jobs
        Taken as there is room for them.

    Raises
    ------
    ClusterError
        One job ended its worker process again and again, or a node's disk is full.
    Exception
        Whatever ``function`` raises, of the same type.
    """
    return _in_order(session, _Tasks(session, function), jobs, None, None)


def map_in_actors(
    session: Session,
    load: Callable[[], Callable[[Job], Result]],
    jobs: Iterable[Job],
    *,
    split: Callable[[Job], list[Job]],
    crashed: Callable[[Job], Result],
    gpus: bool = False,
) -> Iterator[Result]:
    """Results in the order of ``jobs``, by actors that each have one CPU, one thread and what ``load`` returns.

    Parameters
    ----------
    load
        Called once in each actor.
    split
        Parts of a job that ended a worker process: each is then done in a process that does nothing else meanwhile.
    crashed
        The result of a part that ended such a process, too.
    gpus
        Give a GPU to each.

    Raises
    ------
    ClusterError
        No actor can be started.
    Exception
        Whatever ``load`` or the function raises, of the same type.
    """
    actors = _Actors(session, load, gpus)
    try:
        yield from _in_order(session, actors, jobs, split, crashed)
    finally:
        actors.end()


# --- in order -------------------------------------------------------------------------------------------------------


class _Entry:
    """A job on its way."""

    def __init__(self, job: Any, *, alone: bool = False) -> None:
        self.job, self.alone = job, alone
        self.crashes = 0
        self.done = False
        self.result: Any = None


class _Place(Protocol):
    """Where jobs run."""

    def room(self) -> int:
        """How many jobs run at once."""

    def started(self, entry: _Entry) -> Any | None:
        """Start a job and return what it will give, or None if there is no room."""

    def other_news(self, unfinished: int) -> list[Any]:
        """What to wait for beside the results."""

    def heard(self, ref: Any) -> None:
        """News are here, or a result."""

    def blamed(self, ref: Any, entry: _Entry) -> bool:
        """A job was lost; whether by its own doing, as far as one can tell."""


@dataclass(frozen=True)
class _Outcome:
    """What a worker answers: a result, or the error that the work raised, and where."""

    result: Any = None
    error: Exception | None = None
    node: str = ""
    trace: str = ""


def _in_order(
    session: Session,
    place: _Place,
    jobs: Iterable[Any],
    split: Callable[[Any], list[Any]] | None,
    crashed: Callable[[Any], Any] | None,
) -> Iterator[Any]:
    ray, source = session.ray, iter(jobs)
    window: deque[_Entry] = deque()  # in the order of the input, from the oldest that was not yielded
    waiting: deque[_Entry] = deque()
    running: dict[Any, _Entry] = {}
    while True:
        for job in itertools.islice(source, max(AHEAD * place.room() - len(window), 0)):
            window.append(_Entry(job))
            waiting.append(window[-1])
        if not window:
            return
        news = place.other_news(len(running) + len(waiting))
        while waiting and (ref := place.started(waiting[0])) is not None:
            running[ref] = waiting.popleft()
        if window[0].done:
            yield window.popleft().result
            continue
        lost = []
        for ref in _ready(ray, [*running, *news]):
            entry = running.pop(ref, None)
            if entry is None:
                place.heard(ref)
            elif not _finished(session, place, ref, entry):
                lost.append((ref, entry))
        for ref, entry in lost:
            entry.crashes += place.blamed(ref, entry)
            for again in reversed(_again(entry, window, split, crashed)):
                waiting.appendleft(again)


def _again(
    entry: _Entry,
    window: deque[_Entry],
    split: Callable[[Any], list[Any]] | None,
    crashed: Callable[[Any], Any] | None,
) -> list[_Entry]:
    """What is to be started in the place of a job that was lost: itself, its parts, or nothing if it was to blame alone."""
    if entry.crashes == 0:
        return [entry]
    if split is None or crashed is None:
        if entry.crashes >= CRASHES:
            raise ClusterError(f"a job ended its worker process {CRASHES} times; is there enough memory on the nodes?")
        return [entry]
    if entry.alone and entry.crashes < ALONE:
        return [entry]
    if entry.alone:
        entry.done, entry.result = True, crashed(entry.job)
        return []
    parts = [_Entry(part, alone=True) for part in split(entry.job)]
    at = window.index(entry)
    del window[at]
    for part in reversed(parts):
        window.insert(at, part)
    return parts


def _ready(ray: Any, refs: list[Any]) -> list[Any]:
    if not refs:
        time.sleep(0.2)
        return []
    ready, _ = ray.wait(refs, num_returns=1, timeout=1.0)
    if ready and len(refs) > 1:
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return list(ready)


def _finished(session: Session, place: _Place, ref: Any, entry: _Entry) -> bool:
    """Take a result in; False if it was lost."""
    errors = session.ray.exceptions
    try:
        outcome: _Outcome = session.ray.get(ref)
    except (errors.OutOfDiskError, errors.ObjectStoreFullError) as error:
        raise ClusterError(f"a node has no room left for results: {_one_line(error)}") from None
    except errors.RayTaskError as error:  # outside of the work: it could not be sent, or not be imported there
        raise ClusterError(f"a worker could not take or answer a job: {_one_line(error.cause)}") from None
    except errors.RayError as error:
        log.debug("a job was lost: %s", error)
        return False
    place.heard(ref)
    entry.result, entry.done = _value(outcome), True
    return True


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]


def _value(outcome: _Outcome) -> Any:
    """The result, or the error raised as what it is, with the node's name in its message."""
    error, node = outcome.error, outcome.node
    if error is None:
        return outcome.result
    log.debug("on node %s: %s", node, outcome.trace)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise ClusterError(
            f"node {node}: its disk is full ({error}); free some space there and give the command again"
        ) from error
    if isinstance(error, AuscultError) and error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} (on node {node})", *error.args[1:])
    raise error


def _lives(session: Session, node: str) -> bool:
    """Whether a node still does something; that it does not, Ray may learn many seconds after its workers are lost."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = session.ray
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    sign = ray.remote(platform.node).options(num_cpus=0, max_retries=0, scheduling_strategy=there).remote()
    for _ in range(SIGN_S):
        if ray.wait([sign], timeout=1.0)[0]:
            try:
                ray.get(sign)
            except ray.exceptions.RayError:
                return False
            return True
        if not any(one["NodeID"] == node for one in session.nodes(fresh=True)):
            return False
    return False


# --- in a worker ----------------------------------------------------------------------------------------------------


def _settle(folder: str) -> None:
    """One thread, and the driver's folder, so that relative paths mean the same where that is shared."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    if os.path.isdir(folder):
        os.chdir(folder)


def _run(function: Callable[[Any], Any], job: Any, folder: str) -> _Outcome:
    _settle(folder)
    return _outcome(function, job)


def _outcome(function: Callable[..., Any], *arguments: Any) -> _Outcome:
    node = platform.node()
    try:
        return _Outcome(function(*arguments), node=node)
    except Exception as error:  # noqa: BLE001 - it is raised in the driver
        trace = "".join(traceback.format_exception(error))
        return _Outcome(error=error.with_traceback(None), node=node, trace=trace)


class _Worker:
    """What an actor is: something loaded, waiting for jobs."""

    def __init__(self, load: Callable[[], Callable[[Any], Any]], folder: str) -> None:
        _settle(folder)
        self.loaded = _outcome(load)

    def begin(self) -> tuple[_Outcome, str]:
        """Whether it could be loaded, and the id of the node."""
        import ray

        node = ray.get_runtime_context().get_node_id()
        return _Outcome(None, self.loaded.error, self.loaded.node, self.loaded.trace), node

    def work(self, job: Any) -> _Outcome:
        """Do a job."""
        return _outcome(self.loaded.result, job)


# --- places ---------------------------------------------------------------------------------------------------------


class _Tasks:
    """Jobs as tasks: Ray puts them where there is a CPU."""

    def __init__(self, session: Session, function: Callable[[Any], Any]) -> None:
        self.session, self.running = session, 0
        self.function = session.ray.put(function)
        self.task = session.ray.remote(_run).options(num_cpus=1, max_retries=0)

    def room(self) -> int:
        return max(self.session.slots(), 1)

    def started(self, entry: _Entry) -> Any | None:
        if self.running >= AT_ONCE * self.room():
            return None
        self.running += 1
        return self.task.remote(self.function, entry.job, os.getcwd())

    def other_news(self, unfinished: int) -> list[Any]:
        return []

    def heard(self, ref: Any) -> None:
        self.running -= 1

    def blamed(self, ref: Any, entry: _Entry) -> bool:
        self.running -= 1
        time.sleep(PATIENCE_S[min(entry.crashes, len(PATIENCE_S) - 1)])
        return True  # where it ran is not known


class _Actor:
    """An actor that is ready, and what it was given."""

    def __init__(self, handle: Any, node: str) -> None:
        self.handle, self.node = handle, node
        self.refs: dict[Any, _Entry] = {}
        self.first_lost: Any = None

    def takes(self, entry: _Entry) -> bool:
        if entry.alone or any(other.alone for other in self.refs.values()):
            return not self.refs
        return len(self.refs) < AT_ONCE


class _Actors:
    """Jobs in actors, as many as the cluster has room for; lost ones are replaced, and new nodes get theirs."""

    def __init__(self, session: Session, load: Callable[[], Callable[[Any], Any]], gpus: bool) -> None:
        self.session, self.gpus = session, gpus
        self.load = session.ray.put(load)
        self.kind = session.ray.remote(_Worker).options(num_cpus=1, num_gpus=int(gpus), max_restarts=0, max_task_retries=0)
        self.starting: dict[Any, Any] = {}
        self.actors: list[_Actor] = []
        self.dead: list[_Actor] = []  # of which jobs are not known to be lost yet
        self.failed_starts = 0

    def room(self) -> int:
        if not (slots := self.session.slots(gpus=self.gpus)) and self.gpus:
            raise ClusterError("no node of the cluster has a GPU; leave out --device cuda, or add one")
        return max(slots, 1)

    def started(self, entry: _Entry) -> Any | None:
        actor = min((actor for actor in self.actors if actor.takes(entry)), key=lambda actor: len(actor.refs), default=None)
        if actor is None:
            return None
        ref = actor.handle.work.remote(entry.job)
        actor.refs[ref] = entry
        return ref

    def other_news(self, unfinished: int) -> list[Any]:
        for _ in range(min(self.room(), unfinished) - len(self.actors) - len(self.starting)):
            handle = self.kind.remote(self.load, os.getcwd())
            self.starting[handle.begin.remote()] = handle
        return list(self.starting)

    def heard(self, ref: Any) -> None:
        if (handle := self.starting.pop(ref, None)) is None:
            for actor in (*self.actors, *self.dead):
                actor.refs.pop(ref, None)
            return
        try:
            outcome, node = self.session.ray.get(ref)
        except self.session.ray.exceptions.RayError as error:
            self.failed_starts += 1
            if self.failed_starts >= STARTS * self.room():  # a node that is lost takes all along that start on it
                raise ClusterError(f"workers die when they start: {_one_line(error)}") from None
            return
        _value(outcome)
        self.failed_starts = 0
        self.actors.append(_Actor(handle, node))

    def blamed(self, ref: Any, entry: _Entry) -> bool:
        actor = next(actor for actor in (*self.actors, *self.dead) if ref in actor.refs)
        if actor in self.actors:
            self.actors.remove(actor)
            self.dead.append(actor)
            self.session.ray.kill(actor.handle)
        running = actor.first_lost in {None, ref} and next(iter(actor.refs)) == ref  # it does them in the order given
        actor.first_lost = actor.first_lost or ref
        del actor.refs[ref]
        if not actor.refs:
            self.dead.remove(actor)
        return running and (not entry.alone or _lives(self.session, actor.node))  # to do a batch in parts costs little

    def end(self) -> None:
        """Free the CPUs for what comes next."""
        for handle in [*(actor.handle for actor in self.actors), *self.starting.values()]:
            self.session.ray.kill(handle)
