"""Progress on a terminal, in a log, and after Ctrl-C."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import AuscultError
from ..folders import CARD
from ..folders import Progress as ProgressCallable
from .printing import err

DETAIL = " | "  # what follows it in the name of a stage may change from call to call, as the loss of a training does


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="progress.data.speed"
        )


@contextmanager
def progress_bars() -> Iterator[ProgressCallable]:
    """Bars with rate and time left on a terminal; elsewhere a plain line every five seconds and at the end of each stage."""
    try:
        with _bars() as progress:
            yield progress
    except KeyboardInterrupt as stop:
        err.print("stopped; give the same command again to continue")
        print_notes(stop)
        raise


@contextmanager
def continued(store: Path | str) -> Iterator[None]:
    """Add to an error or Ctrl-C that the store keeps what was described."""
    try:
        yield
    except (AuscultError, OSError, KeyboardInterrupt) as error:
        if _keeps_shards(store):
            error.add_note(f"{store}: keeps what was described; the same command continues from there")
        raise


def _keeps_shards(store: Path | str) -> bool:
    """Whether a store that is not complete holds anything; no, if it cannot be asked."""
    from ..storage import open_folder
    from ..store import PARTS

    with suppress(AuscultError, OSError):
        folder = open_folder(store)
        return not folder.exists(CARD) and any(entry.name.startswith("part-") for entry in folder.below(PARTS).list())
    return False


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        err.print(Text(record.getMessage()))  # the console's, which goes round the bars


@contextmanager
def log_as_lines(name: str) -> Iterator[None]:
    """Print what a part of the library logs, with and without --verbose."""
    logger, lines = logging.getLogger(name), _Lines()
    level, passed_on = logger.level, logger.propagate
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # else --verbose would print it twice
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
        logger.propagate = passed_on


def print_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        err.print(Text(note))


@contextmanager
def _bars() -> Iterator[ProgressCallable]:
    if not err.is_terminal:
        yield _plain_progress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int | None, what: str) -> None:
            stage = what.partition(DETAIL)[0]
            if stage not in tasks or bars.tasks[tasks[stage]].completed > done:
                tasks[stage] = bars.add_task(what, total=total, completed=done)
            bars.update(tasks[stage], completed=done, total=total, description=what)

        yield show


def _plain_progress() -> ProgressCallable:
    last: dict[str, float] = {}
    begun: dict[str, tuple[float, int]] = {}  # when, and how much was done: a run that goes on made only the rest
    latest: dict[str, int] = {}

    def show(done: int, total: int | None, what: str) -> None:
        now = time.monotonic()
        stage = what.partition(DETAIL)[0]
        if stage not in latest or done < latest[stage]:
            begun[stage] = (now, done)  # for the first time, or once more
        latest[stage] = done
        if done == total or now - last.setdefault(stage, now) >= 5:
            last[stage] = now
            elapsed, made = now - begun[stage][0], done - begun[stage][1]
            rate = f", {made / elapsed:,.1f}/s" if made and elapsed > 0.5 else ""
            err.print(Text(f"{what}: {done:,}{'' if total is None else f' of {total:,}'}{rate}"))

    return show
