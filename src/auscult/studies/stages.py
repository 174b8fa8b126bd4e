"""A study as a list of stages, each a folder or file that is whole once it is there; what they cost is known before they begin.

A stage resumes itself, so a study that was killed goes on with the stage that was being made; what is whole is not looked into.
How long the stages took is written down, and tells how long those to come will take.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration import flat_values
from ..errors import OutputFolderError
from ..folders import CARD, TASK, Progress, locked, no_progress, remove_stale_temporaries, write_text

TIMES = "times.jsonl"
_SHOWN = 4  # settings that a message names


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes
    ----------
    place
        Folder or file that it makes, below the study's folder. A folder is whole if it holds a card.
    kind
        Stages of one kind are done at one rate.
    amount
        How much of it there is to do, in ``unit``: what its time grows with.
    unit
        Of the amount, in the plural: "training steps".
    make
        Makes the place, and goes on where it was stopped. Called with the place and a progress callable.
    """

    place: str
    kind: str
    amount: float
    unit: str
    make: Callable[[Path, Progress], object]

    def whole(self, folder: Path) -> bool:
        """Whether it is done."""
        path = folder / self.place
        return (path / CARD).is_file() if path.is_dir() else path.is_file()

    def begun(self, folder: Path) -> bool:
        """Whether an earlier run has left a part of it: then the time of the rest says nothing of the whole."""
        path = folder / self.place
        return path.exists() or path.with_name(f"{path.name}.partial").exists()


@dataclass(frozen=True)
class PlanRow:
    """What there is of one kind of stages.

    Attributes
    ----------
    kind, unit
        See :class:`Stage`.
    stages, amount
        All of them.
    done
        How many are whole.
    seconds
        What the rest will take; None: nobody knows.
    measured
        Whether the rate was measured here, on stages that are done, or stated.
    """

    kind: str
    unit: str
    stages: int
    amount: float
    done: int
    seconds: float | None
    measured: bool


@dataclass(frozen=True)
class Plan:
    """A study before it starts: a row for each kind of stages, in the order in which they first occur, and what to know."""

    rows: tuple[PlanRow, ...]
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Of all that is left; None if that of some is not known."""
        known = [row.seconds for row in self.rows if row.seconds is not None]
        return sum(known) if len(known) == len(self.rows) else None

    def to_json(self) -> dict[str, Any]:
        """As a card and ``--json`` hold it."""
        return {"seconds": self.seconds, "stages": [vars(row) for row in self.rows], "warnings": list(self.warnings)}


def plan_stages(stages: Sequence[Stage], folder: Path, rates: Mapping[str, float]) -> Plan:
    """What a study consists of, and how long what is left of it will take.

    Parameters
    ----------
    stages
        All of them.
    folder
        Of the study; it need not be there.
    rates
        Stated amounts per second by kind, which count until a stage of the kind was measured here.

    Raises
    ------
    OutputFolderError
        The folder is a file, or holds something that is not a study.

    Examples
    --------
    >>> def make(path, progress): ...
    >>> stages = [Stage(f"models/{n}", "training", 700, "training steps", make) for n in (8, 24)]
    >>> plan_stages(stages, Path("nowhere"), {"training": 3.5}).seconds
    400.0
    """
    check_place(folder)
    measured = measured_rates(folder)
    rows = []
    for kind in dict.fromkeys(stage.kind for stage in stages):
        own = [stage for stage in stages if stage.kind == kind]
        left = [stage.amount for stage in own if not stage.whole(folder)]
        rate = measured.get(kind, rates.get(kind))
        seconds = 0.0 if not left else None if not rate else sum(left) / rate
        amount, done = sum(stage.amount for stage in own), len(own) - len(left)
        rows.append(PlanRow(kind, own[0].unit, len(own), amount, done, seconds, kind in measured))
    return Plan(tuple(rows))


def measured_rates(folder: Path) -> dict[str, float]:
    """Amounts per second by kind, of the stages that one run made from beginning to end."""
    sums: dict[str, tuple[float, float]] = {}
    for line in read_times(folder):
        if not line["resumed"]:
            amount, seconds = sums.get(line["kind"], (0.0, 0.0))
            sums[line["kind"]] = amount + line["amount"], seconds + line["seconds"]
    return {kind: amount / seconds for kind, (amount, seconds) in sums.items() if amount and seconds}


def read_times(folder: Path) -> list[dict[str, Any]]:
    """What each stage took; a last line that a kill has cut is no line."""
    path = folder / TIMES
    if not path.is_file():
        return []
    whole, _, _ = path.read_text("utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def run_stages(stages: Sequence[Stage], folder: Path, progress: Progress = no_progress) -> None:
    """Make what is not there yet, in order.

    Raises
    ------
    ValueError
        Two stages make one place.
    OutputFolderError
        A stage has ended without making what it should.
    """
    if len({stage.place for stage in stages}) < len(stages):
        raise ValueError(f"expected a place of its own for each stage, got {[stage.place for stage in stages]}")
    for number, stage in enumerate(stages, 1):
        if stage.whole(folder):
            continue
        resumed, started = stage.begun(folder), time.monotonic()

        def shown(done: int, total: int | None, what: str, where: str = f"{number}/{len(stages)} {stage.place}") -> None:
            progress(done, total, f"{where}: {what}")

        (folder / stage.place).parent.mkdir(parents=True, exist_ok=True)
        stage.make(folder / stage.place, shown)
        if not stage.whole(folder):
            raise OutputFolderError(f"{folder / stage.place}: was to be made, and is not there; was it taken away meanwhile?")
        _note(folder, stage, time.monotonic() - started, resumed)


def _note(folder: Path, stage: Stage, seconds: float, resumed: bool) -> None:
    """Add a line to the times; one that a kill has cut goes first."""
    path = folder / TIMES
    text = path.read_text("utf-8") if path.is_file() else ""
    kept, end, _ = text.rpartition("\n")
    line = {"place": stage.place, "kind": stage.kind, "amount": stage.amount, "seconds": round(seconds, 2), "resumed": resumed}
    write_text(path, f"{kept}{end}{json.dumps(line)}\n")


@contextmanager
def study_folder(output: Path, kind: str, task: Mapping[str, Any]) -> Iterator[Path]:
    """Hold the folder of a study: new, or that of the same one.

    The folder has its name from the beginning, since audits name the files of generated clips by their full paths.

    Parameters
    ----------
    output
        The folder.
    kind
        Of the study.
    task
        All that decides about its results, as JSON can hold it.

    Raises
    ------
    OutputFolderError
        It holds something else, another kind of study, or one with other settings.
    StoreError
        Another process works in it.
    """
    check_place(output, kind)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        remove_stale_temporaries(output)
        check_place(output, kind, task)
        if not (output / TASK).is_file():
            write_text(output / TASK, json.dumps(_as_written(kind, task), indent=1, sort_keys=True))
        yield output


def check_place(output: Path, kind: str | None = None, task: Mapping[str, Any] | None = None) -> None:
    """Refuse a folder that holds something else, a study of another kind than this, or one with other settings.

    Parameters
    ----------
    output
        The folder; it need not be there.
    kind, task
        Of the study, see :func:`study_folder`; None: any.

    Raises
    ------
    OutputFolderError
        It does.
    """
    if output.exists() and not output.is_dir():
        raise OutputFolderError(f"{output}: exists and is a file; choose another -o")
    if output.is_dir() and any(output.iterdir()) and not (output / TASK).is_file():
        raise OutputFolderError(f"{output}: holds something that is not a study; choose another -o")
    if kind is not None and (output / TASK).is_file() and (there := _task(output).get("kind")) != kind:
        raise OutputFolderError(f"{output}: another kind of study was begun here (a {there}, not a {kind}); choose another -o")
    if task is not None and (output / TASK).is_file():
        _check_same(output, _as_written(kind, task))


def _as_written(kind: str | None, task: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(json.dumps({"kind": kind, **task}))
    return written


def _task(output: Path) -> dict[str, Any]:
    try:
        there: dict[str, Any] = json.loads((output / TASK).read_text("utf-8"))
    except ValueError as error:
        raise OutputFolderError(f"{output / TASK}: cannot be read ({error}); choose another -o") from error
    return there


def _check_same(output: Path, wanted: dict[str, Any]) -> None:
    old, new = flat_values(_task(output)), flat_values(wanted)
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if changed:
        told = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:_SHOWN])
        raise OutputFolderError(f"{output}: a study with other settings was begun here ({told}); choose another -o")
