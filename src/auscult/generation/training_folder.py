"""The folder of a training: what lies where, and that it is this run's and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..configuration import config_values
from ..errors import OutputFolderError
from ..folders import CARD, TASK, is_folder_of, locked, write_text
from .training_config import TrainConfig

KIND = "training"
CHECKPOINTS, PIPELINE, LOG, GATES, SHEETS, FIGURE = (
    "checkpoints",
    "pipeline",
    "log.jsonl",
    "gates.json",
    "sheets",
    "training.png",
)
# what may be another when a run goes on: it changes what is shown and when to stop, not what is computed at a step
_MAY_CHANGE = ("logging", "gates", "device", "threads")


@contextmanager
def workplace(out: Path, config: TrainConfig, accelerator: Any) -> Iterator[Path]:
    """Hold the folder of the run: new, or that of the same run.

    Raises
    ------
    OutputFolderError
        It holds something else, a training with other settings, or a finished one.
    StoreError
        Another process trains here.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield out
        return
    if out.exists() and not out.is_dir():
        raise OutputFolderError(f"{out}: exists and is a file; choose another -o")
    if out.is_dir() and any(out.iterdir()) and not (out / TASK).is_file():
        raise OutputFolderError(f"{out}: holds something that is not a training; choose another -o")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _claim(out, config)
        accelerator.wait_for_everyone()
        yield out


def _claim(out: Path, config: TrainConfig) -> None:
    """Write the configuration down, or see that it is that of the run which lies there."""
    wanted = json.loads(json.dumps(config_values(config)))
    path = out / TASK
    if not path.is_file():
        write_text(path, json.dumps(wanted, indent=1, sort_keys=True))
        return
    try:
        there = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise OutputFolderError(f"{path}: cannot be read ({error}); choose another -o") from error
    if not isinstance(there, dict) or not isinstance(there.get("optimizer"), dict) or "steps" not in there["optimizer"]:
        raise OutputFolderError(f"{out}: its {TASK} is that of something else than a training; choose another -o")
    changed = [
        key for key in sorted(_flat(wanted).keys() | _flat(there).keys()) if _flat(wanted).get(key) != _flat(there).get(key)
    ]
    changed = [key for key in changed if key.partition(".")[0] not in _MAY_CHANGE]
    if changed and not (out / GATES).exists() and not (out / CHECKPOINTS).exists():
        # refused or stopped before its first step: there is only a cache, of which each part knows what it was made of
        write_text(path, json.dumps(wanted, indent=1, sort_keys=True))
        return
    longer = there["optimizer"]["steps"] < wanted["optimizer"]["steps"]
    if changed == ["optimizer.steps"] and longer:
        return  # written down by go_on, for it may be refused yet
    if changed:
        old, new = _flat(there), _flat(wanted)
        told = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:4])
        raise OutputFolderError(f"{out}: a training with other settings was begun here ({told}); choose another -o")
    if is_folder_of(out, KIND):
        raise OutputFolderError(f"{out}: this training is finished; choose another -o, or raise optimizer.steps to go on")


def go_on(out: Path, config: TrainConfig) -> None:
    """Write down that a run goes on to more steps, once nothing refuses it any more; its card of fewer steps goes."""
    wanted = json.loads(json.dumps(config_values(config)))
    if json.loads((out / TASK).read_text("utf-8"))["optimizer"]["steps"] < wanted["optimizer"]["steps"]:
        (out / CARD).unlink(missing_ok=True)
        write_text(out / TASK, json.dumps(wanted, indent=1, sort_keys=True))


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat
