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
from .gates import read_gates
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
        It holds something else, or a training with other settings.
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
    changed = _changed(there, wanted)
    if changed and not _has_begun(out):
        # there is only a cache, of which each part knows what it was made of
        (out / GATES).unlink(missing_ok=True)
        write_text(path, json.dumps(wanted, indent=1, sort_keys=True))
        return
    longer = there["optimizer"]["steps"] < wanted["optimizer"]["steps"]
    if changed == ["optimizer.steps"] and longer:
        return  # written down by go_on, for it may be refused yet
    if changed:
        old, new = _flat(there), _flat(wanted)
        told = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in changed[:4])
        raise OutputFolderError(f"{out}: a training with other settings was begun here ({told}); choose another -o")


def is_finished(out: Path, config: TrainConfig) -> bool:
    """Whether a training of this configuration is finished there, so that nothing is left to do."""
    if not is_folder_of(out, KIND) or not (out / TASK).is_file():
        return False
    try:
        there = json.loads((out / TASK).read_text("utf-8"))
    except ValueError:
        return False  # refused, with its reason, where the folder is claimed
    return isinstance(there, dict) and not _changed(there, json.loads(json.dumps(config_values(config))))


def _has_begun(out: Path) -> bool:
    """Whether a run got as far as its first step: it passed its gates, or left a checkpoint or a model."""
    if any((out / name).exists() for name in (CHECKPOINTS, PIPELINE)):
        return True
    return (out / GATES).exists() and all(gate.passed for gate in read_gates((out / GATES).read_text("utf-8")))


def go_on(out: Path, config: TrainConfig) -> None:
    """Write down that a run goes on to more steps, once nothing refuses it any more; its card of fewer steps goes."""
    wanted = json.loads(json.dumps(config_values(config)))
    if json.loads((out / TASK).read_text("utf-8"))["optimizer"]["steps"] < wanted["optimizer"]["steps"]:
        (out / CARD).unlink(missing_ok=True)
        write_text(out / TASK, json.dumps(wanted, indent=1, sort_keys=True))


def _changed(there: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Keys of settings that decide what is computed at a step, and differ."""
    old, new = _flat(there), _flat(wanted)
    differ = (key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key))
    return [key for key in differ if key.partition(".")[0] not in _MAY_CHANGE]


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat
