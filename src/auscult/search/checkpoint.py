"""Where a search of hours stands, kept on disk, so that a second start goes on from there."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import atomic_file

EVERY_S = 60.0  # of work that a kill may cost

Arrays = dict[str, npt.NDArray[Any]]


class Checkpoint:
    """The state of one search: arrays, and how many of its jobs went into them.

    Parameters
    ----------
    path
        The file, or None to keep nothing. What identifies the search (inputs, settings) belongs into its name or folder:
        a file that is there is believed.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.saved_at = path, time.monotonic()

    def restore(self) -> tuple[int, Arrays]:
        """Jobs done and their arrays; 0 and none if nothing was kept or it cannot be read."""
        if self.path is None or not self.path.is_file():
            return 0, {}
        try:
            with np.load(self.path, allow_pickle=False) as kept:
                arrays = {name: kept[name] for name in kept.files}
        except (OSError, ValueError, zipfile.BadZipFile):
            return 0, {}  # a disk's damage costs the time of that search, no more
        return int(arrays.pop("done")), arrays

    def keep(self, done: int, arrays: Arrays, *, now: bool = False) -> None:
        """Write the state if the last time is `EVERY_S` ago (or ``now``)."""
        if self.path is None or not (now or time.monotonic() - self.saved_at >= EVERY_S):
            return
        with atomic_file(self.path) as handle:
            np.savez(handle, allow_pickle=False, done=np.int64(done), **arrays)
        self.saved_at = time.monotonic()
