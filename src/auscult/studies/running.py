"""A study from its stages to card and report: what all studies do alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration import config_values
from ..folders import Progress, no_progress, read_card, write_card
from .stages import Stage, plan_stages, read_times, run_stages, study_folder

_NOT_A_RESULT = ("preset", "rates", "threads")  # settings that may change when a study goes on
_COUNTED = {"training": "models", "auditing": "audits"}
_MAKING = ("generating", "guiding")  # kinds of stages that make clips


@dataclass(frozen=True)
class Study:
    """A finished study on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path, kind: str) -> Study:
        """Open a finished study of a kind; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), kind))


def run_study(
    output: Path,
    kind: str,
    config: Any,
    stages: Sequence[Stage],
    results: Callable[[Path], Mapping[str, Any]],
    write_page: Callable[[Path, Mapping[str, Any], Progress], object],
    progress: Progress = no_progress,
    *,
    threads: int | None = None,
) -> Study:
    """Run the stages that are not done, then write card and report; those of a finished study are written anew.

    Parameters
    ----------
    output
        Folder of the study.
    kind
        Of the study, as its card says it.
    config
        Its configuration, with a table ``rates``. All of it but preset, rates and threads decides about results.
    stages
        All of them.
    results
        What the finished stages in a folder say, as the card holds it.
    write_page
        Writes the report: called with the folder, what the card will hold, and progress.
    progress
        Called with the stage and what is done of it.
    threads
        How many there are, where results are compared to the last bit, so that it goes on with no other number. None: with any.

    Raises
    ------
    OutputFolderError
        The folder holds something else, or a study with other settings.
    """
    folder = output.absolute()
    with study_folder(folder, kind, task_of(config, threads)):
        run_stages(stages, folder, progress)
        content = {
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(sum(line["seconds"] for line in read_times(folder)), 1),
            "counts": _counts(stages),
            "config": config_values(config),
            **results(folder),
            "plan": plan_stages(stages, folder, stated(config.rates)).to_json(),
        }
        write_page(folder, content, progress)
        write_card(folder, kind, content)
    return Study.open(folder, kind)


def task_of(config: Any, threads: int | None = None) -> dict[str, Any]:
    """What of a configuration decides about results; and how many threads there are, where it is given, since results are then
    compared to the last bit."""
    task = {key: value for key, value in config_values(config).items() if key not in _NOT_A_RESULT}
    return task if threads is None else {**task, "threads": threads}


def _counts(stages: Sequence[Stage]) -> dict[str, int]:
    """Of stages, by the first word of their kind: ``training with pairs`` makes models, too."""
    first = [(stage.kind.split()[0], stage.amount) for stage in stages]
    found = {name: sum(kind == one for one, _ in first) for kind, name in _COUNTED.items()}
    return {**found, "clips": round(sum(amount for one, amount in first if one in _MAKING))}


def stated(rates: Any) -> dict[str, float]:
    """The rates that a configuration states, by kinds of stages: ``training_with_pairs`` is that of ``training with pairs``."""
    return {name.replace("_", " "): value for name, value in vars(rates).items() if value}
