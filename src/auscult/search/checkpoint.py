"""Where a search of hours stands, kept on disk, so that a second start goes on from there."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import atomic_file

EVERY_S = 60.0  # of work that a kill may cost

Arrays = dict[str, npt.NDArray[Any]]


class Checkpoint:
    """The state of a search that is done in steps: what was found in the first of them.

    Parameters
    ----------
    path
        The file, or None to keep nothing. What identifies the search (inputs, settings) belongs into its name or folder:
        a file that is there is believed.
    stops
        Where each step ends (rows, pairs), increasing. A state that does not end at one of them was made in other steps, and
        is not used.
    """

    def __init__(self, path: Path | None, stops: Sequence[int]) -> None:
        self.path, self.stops, self.saved_at = path, stops, time.monotonic()

    def restore(self, empty: Arrays) -> tuple[int, Arrays]:
        """Steps done and the arrays found in them; 0 and ``empty``, if there is nothing.

        They have the names and types of those in ``empty``, and their shapes, if these are not empty, too.
        """
        if self.path is None or not self.path.is_file():
            return 0, empty
        try:
            with open(self.path, "rb") as handle, np.load(handle, allow_pickle=False) as kept:
                stop = int(kept["stop"])
                arrays = {name: kept[name].astype(array.dtype) for name, array in empty.items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return 0, empty  # a disk's damage costs the time of that search, no more
        fits = all(arrays[name].shape == array.shape or array.size == 0 for name, array in empty.items())
        if stop not in self.stops or not fits:
            return 0, empty
        return self.stops.index(stop) + 1, arrays

    def keep(self, done: int, arrays: Arrays) -> None:
        """Write the state if the last time is `EVERY_S` ago, or if this was the last of several steps."""
        last = done == len(self.stops) > 1
        if self.path is None or not (last or time.monotonic() - self.saved_at >= EVERY_S):
            return
        with atomic_file(self.path) as handle:
            np.savez(handle, allow_pickle=False, stop=np.int64(self.stops[done - 1]), **arrays)
        self.saved_at = time.monotonic()
