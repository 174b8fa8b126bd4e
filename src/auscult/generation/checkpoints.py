"""Checkpoints that can be trusted: whole or not there, checked before they are read, the last ones kept.

A checkpoint is the state of accelerate (weights, optimizer, averages, random states) in ``step-000200/``, with a
``checkpoint.json`` that says which step it is of and holds the digest of every file. It is written under another name,
flushed to the disk and renamed; older ones are deleted only then. So whatever happens while one is written (a kill, a full
disk), the previous one is as it was.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError, StorageError
from ..folders import damaged_files, file_digest, write_text

LOGGER = logging.getLogger(__name__)
FACTS = "checkpoint.json"
_NAME = re.compile(r"step-(\d+)")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step (the number of steps done), and what was said of it when it was saved."""

    path: Path
    step: int
    facts: dict[str, Any]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints of a folder, ascending, whether they are whole or not."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def partial_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return folder / f"{_path(folder, step).name}{_PARTIAL}"


def save_checkpoint(
    folder: Path, step: int, write: Callable[[Path], Any], *, facts: Mapping[str, Any] | None = None, keep: int = 2
) -> Path:
    """Write the checkpoint of a step, then delete all but the last ``keep``.

    Parameters
    ----------
    folder
        Of the checkpoints.
    step
        Number of steps done.
    write
        Writes the state into the empty folder it is given.
    facts
        What JSON can hold, to be read back by :func:`latest_checkpoint`.
    keep
        Checkpoints kept, this one included.

    Raises
    ------
    StorageError
        It could not be written (a full disk, a lost right); earlier checkpoints are as they were.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for step in (10, 20, 30):
    ...         path = save_checkpoint(Path(name), step, lambda new: (new / "weights").write_text("1"))
    ...     checkpoint_steps(Path(name)), latest_checkpoint(Path(name)).step
    ([20, 30], 30)
    """
    partial = partial_path(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_partials(folder)
        partial.mkdir()
        write(partial)
        names = sorted(str(path.relative_to(partial)) for path in partial.rglob("*") if path.is_file())
        for name in names:
            _flush(partial / name)
        digests = {name: file_digest(partial / name) for name in names}
        write_text(partial / FACTS, json.dumps({"step": step, "files": digests, "facts": dict(facts or {})}, indent=1))
        if _path(folder, step).exists():  # of a run that was set back
            shutil.rmtree(_path(folder, step))
        partial.replace(_path(folder, step))
        _flush(folder)
    except Exception as error:  # torch and safetensors tell of a full disk in errors of their own
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(_cannot_write(folder, step, error)) from error
    for old in checkpoint_steps(folder)[:-keep]:
        shutil.rmtree(_path(folder, old), ignore_errors=True)
    return _path(folder, step)


@contextmanager
def told_if_full(where: Path, what: str) -> Iterator[None]:
    """What a library raises in the block, which does nothing but write, becomes a :class:`StorageError` in words.

    torch, safetensors and diffusers tell of a full disk in errors of their own.

    Examples
    --------
    >>> try:
    ...     with told_if_full(Path("model"), "the model"):
    ...         raise RuntimeError("no space")
    ... except StorageError as error:
    ...     str(error).partition(";")[0]
    'model: the model could not be written (no space'
    """
    try:
        yield
    except Exception as error:
        raise StorageError(
            f"{where}: {what} could not be written ({_reason(where, error)}). Make room and give the same command again"
        ) from error


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint; None where there is none at all.

    One that is damaged is skipped with a warning in the log, for the one before it leads to the same weights.

    Raises
    ------
    ModelError
        There are checkpoints, but every one is damaged.
    """
    reasons = []
    for step in reversed(checkpoint_steps(folder)):
        path = _path(folder, step)
        try:
            found = read_checkpoint(path)
        except ModelError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            LOGGER.warning("%s; skipped for the one before it", reason)
        return found
    if reasons:
        raise ModelError(f"no whole checkpoint is left ({'; '.join(reasons)}); delete {folder} to train from the beginning")
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Check a checkpoint, every byte of it.

    Raises
    ------
    ModelError
        A file is missing, cut short or changed.
    """
    try:
        content = json.loads((path / FACTS).read_text("utf-8"))
        step, files, facts = content["step"], content["files"], content["facts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its {FACTS} cannot be read ({error}), so this is no whole checkpoint") from error
    if problems := damaged_files(path, files):
        raise ModelError(f"{path}: damaged: {problems[0]}" + (f", and {len(problems) - 1} more" if problems[1:] else ""))
    return Checkpoint(path, step, facts)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _remove_partials(folder: Path) -> None:
    for path in folder.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do not flush folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(folder: Path, step: int, error: Exception) -> str:
    before = checkpoint_steps(folder)
    kept = f"that of step {before[-1]} is as it was" if before else "there is none before it"
    return (
        f"{folder}: the checkpoint of step {step} could not be written ({_reason(folder, error)}); {kept}. Make room and give "
        "the same command again"
    )


def _reason(where: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else (str(error).splitlines() or [""])[0]
    reason = reason or type(error).__name__
    with suppress(OSError):
        free = shutil.disk_usage(next(path for path in (where, *where.parents) if path.exists())).free
        reason = f"{reason}; {free / 2**20:,.0f} MiB are free"
    return reason
