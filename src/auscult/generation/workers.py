"""Jobs in several processes, each of which has loaded a model on a device of its own."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ..errors import ModelError

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], None]
Work = Callable[[Job, Tick], Result]
"""What is done with a job; it calls its second argument with the number of units of work it has done since the last call."""
Load = Callable[[str], Work[Job, Result]]
"""Device -> what is done with a job. Picklable where there are several devices; called once a process."""

_STOP_S = 5.0  # to wait for a process that was told to end


@contextmanager
def torch_threads(wanted: int | None) -> Iterator[None]:
    """Let torch use so many threads in the block, and as many as before behind it; None changes nothing.

    Processes of :func:`work_on_devices` share that number.
    """
    if wanted is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def work_on_devices(
    load: Load[Job, Result], jobs: Iterator[Job], devices: Sequence[str], tick: Tick
) -> Generator[tuple[Job, Result]]:
    """Each job with its result, as they are done: one process for each device, or this one for a single device.

    The processes share the number of threads that torch has here.

    A process takes the next job when it is done with its last. When this generator is closed, when an error or Ctrl-C ends it,
    or when its own process is killed, the processes end, whatever they are at; so what they write must appear as a whole or
    not at all.

    Raises
    ------
    ModelError
        A process was ended from outside.
    Exception
        What ``load`` or the work raises.
    """
    if len(devices) == 1:
        work = load(devices[0])
        for job in jobs:
            yield job, work(job, tick)
        return
    import torch

    context = multiprocessing.get_context("spawn")  # fork and CUDA do not go together
    threads = max(1, torch.get_num_threads() // len(devices))
    processes: dict[Connection, Any] = {}
    under_way: dict[Connection, Job] = {}
    try:
        for device in devices:
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_run, args=(theirs, load, device, threads), daemon=True)
            processes[ours].start()
            theirs.close()  # or its end would not be seen here
        while processes:
            for connection in wait(list(processes)):
                kind, content = _received(connection, processes[connection], under_way)  # type: ignore[arg-type,index]
                if kind == "units":
                    tick(content)
                    continue
                if kind == "failed":
                    raise content
                if kind == "done":
                    yield under_way.pop(connection), content  # type: ignore[call-overload]
                _send_next(connection, processes, jobs, under_way)  # type: ignore[arg-type]
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join(_STOP_S)


def _received(connection: Connection, process: Any, under_way: dict[Connection, Any]) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        process.join(_STOP_S)
        lost = f" while it made {under_way[connection]}" if connection in under_way else ""
        raise ModelError(
            f"a process ended with code {process.exitcode}{lost}: it crashed, or was ended from outside, as systems do when "
            "memory runs out; give the same command again to continue, with a smaller --batch-size or fewer --workers"
        ) from None


def _send_next(
    connection: Connection, processes: dict[Connection, Any], jobs: Iterator[Any], under_way: dict[Connection, Any]
) -> None:
    job = next(jobs, None)
    if job is not None:
        under_way[connection] = job
        connection.send(job)
        return
    connection.send(None)
    processes.pop(connection).join(_STOP_S)
    connection.close()


def _run(connection: Connection, load: Load[Any, Any], device: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # that the other end is gone, because the parent was killed, ends this process at its next word
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            import torch

            torch.set_num_threads(threads)
            work = load(device)
            connection.send(("ready", None))
            while (job := connection.recv()) is not None:
                connection.send(("done", work(job, lambda units: connection.send(("units", units)))))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001  # raised again by the parent
            connection.send(("failed", _portable(error)))


def _portable(error: Exception) -> Exception:
    """An error as it can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  # whatever an error's own reduction raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
